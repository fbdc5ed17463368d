-- Removes the consumers of a group that hold nothing and have long not tried to read. What a
-- consumer holds would be lost with it, so that both are looked at in one step.
--
-- KEYS  1 events
-- ARGV  1 group  2 milliseconds
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
