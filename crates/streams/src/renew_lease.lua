-- Renews the lease if writer and epoch are still the caller's, and no step is missing that Redis has
-- acknowledged. Uses PEXPIRE, because SET would be refused when memory is full. An expired lease is
-- taken again if nobody else has taken it.
--
-- KEYS  1 lease  2 cursor
-- ARGV  1 writer  2 epoch  3 seq  4 TTL in ms
local owner = redis.call('GET', KEYS[1])
local writer, epoch, seq = unpack(redis.call('HMGET', KEYS[2], 'writer', 'epoch', 'seq'))
if writer ~= ARGV[1] or epoch ~= ARGV[2] then return {'lost', writer or '', epoch or '0'} end
if owner and owner ~= ARGV[1] then return {'lost', owner, epoch} end
if tonumber(seq) < tonumber(ARGV[3]) then return {'rolled_back', seq} end
if owner then
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
else
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[4])
end
return {'renewed'}
