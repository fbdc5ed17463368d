-- Deletes a chain's keys, whatever they hold, except the dedup records. Refuses while somebody
-- holds the lease.
--
-- KEYS  1 lease  2 cursor  3 events  4 blocks  5 aside  6 reset
if redis.call('TYPE', KEYS[1]).ok == 'string' then
  return {'held', redis.call('GET', KEYS[1]), tostring(redis.call('PTTL', KEYS[1]))}
end
redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5])
local now = redis.call('TIME')
redis.call('SET', KEYS[6], now[1] .. '.' .. now[2], 'EX', 86400)
return {'deleted'}
