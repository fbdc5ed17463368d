-- Deletes a chain's keys but for the dedup records, whatever they hold, unless somebody writes to
-- them.
--
-- KEYS  1 lease  2 cursor  3 events  4 blocks  5 aside
if redis.call('TYPE', KEYS[1]).ok == 'string' then
  return {'held', redis.call('GET', KEYS[1]), tostring(redis.call('PTTL', KEYS[1]))}
end
redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5])
return {'deleted'}
