-- Releases the lease if it is still the caller's.
--
-- KEYS  1 lease  2 cursor
-- ARGV  1 writer  2 epoch
local writer, epoch = unpack(redis.call('HMGET', KEYS[2], 'writer', 'epoch'))
if redis.call('GET', KEYS[1]) == ARGV[1] and writer == ARGV[1] and epoch == ARGV[2] then
  redis.call('DEL', KEYS[1])
  return {'released'}
end
return {'not_ours'}
