-- Removes the consumers of a group that have nothing pending and have not tried to read for a given
-- time. Deleting a consumer loses its pending entries, so check and removal are one atomic script.
--
-- KEYS  1 events
-- ARGV  1 group  2 idle time in ms
local removed = {'pruned'}
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local held = {}
  for i = 1, #consumer, 2 do held[consumer[i]] = consumer[i + 1] end
  if held.pending == 0 and held.idle >= tonumber(ARGV[2]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], held.name)
    table.insert(removed, held.name)
  end
end
return removed
