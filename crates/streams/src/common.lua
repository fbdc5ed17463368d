-- Begins step.lua and take_lease.lua.

-- The reply for the first key that does not hold the type expected of it; nil if there is none.
local function wrong_type(keys, expected)
  for i, kind in ipairs(expected) do
    local found = keys[i] and redis.call('TYPE', keys[i]).ok or 'none'
    if found ~= 'none' and found ~= kind then return {'wrong_type', keys[i], found, kind} end
  end
end

-- The last ID that a stream ever assigned; `0-0` if there is no stream.
local function last_generated_id(stream)
  if redis.call('EXISTS', stream) == 0 then return '0-0' end
  local info = redis.call('XINFO', 'STREAM', stream)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then return info[i + 1] end
  end
end

-- The fields of the newest marker, by name, and its ID; there must be one.
local function newest_marker(blocks)
  local marker = {}
  local id, fields = unpack(redis.call('XREVRANGE', blocks, '+', '-', 'COUNT', 1)[1])
  for i = 1, #fields, 2 do marker[fields[i]] = fields[i + 1] end
  return marker, id
end

-- Deletes a stream's entries from this ID on.
local function delete_from(stream, first)
  for _, entry in ipairs(redis.call('XRANGE', stream, first, '+')) do
    redis.call('XDEL', stream, entry[1])
  end
end

-- Gives a stream that was set aside by the first half of a step its name back. Returns the last ID before the step's
-- entries, and how many entries there were before them; nil if nothing is set aside.
local function put_back(events, aside, cursor)
  local opened = redis.call('HMGET', cursor, 'open')[1]
  if not opened then return nil end
  redis.call('RENAME', aside, events)
  redis.call('HDEL', cursor, 'open')
  return string.match(opened, '^(%S+) (%d+)$')
end

-- How the streams contradict a cursor at `seq`, as a text; nil if they do not. Each step writes a
-- marker with the cursor's seq, and retention leaves the newest one. That one names the last ID of the
-- event stream: `0-0` if there was no event yet, and so perhaps no stream. An empty stream that never
-- assigned an ID may come from a consumer that created its group again.
local function contradiction(events, blocks, seq)
  if not seq or seq == '0' then return nil end
  local at = ', although the cursor is at seq ' .. seq
  local function gone(key) return 'the stream ' .. key .. ' is gone' .. at end
  if redis.call('XLEN', blocks) == 0 then return gone(blocks) end
  local marker, id = newest_marker(blocks)
  if not marker.seq then
    return 'the newest entry of ' .. blocks .. ', ' .. id .. ', is no marker (XDEL removes it)' .. at
  end
  if marker.seq ~= seq then
    return 'the newest marker of ' .. blocks .. ' has seq ' .. marker.seq .. at
  end
  if marker.last_id ~= '0-0' and redis.call('XLEN', events) == 0
      and last_generated_id(events) == '0-0' then
    return gone(events)
  end
end

-- The error for the first command after a step's first write that the user may not run; nil if there
-- is none. A right that is missing in the middle of a step would leave it half-written. While a script
-- or a transaction runs, no right is given or taken away. `seen` and `aside` only if the step uses them.
local function denied(events, blocks, cursor, seen, aside)
  local commands = {{'XADD', blocks, '*', 'f', 'v'}, {'HSET', cursor, 'f', 'v'}}
  if seen then
    table.insert(commands, {'SET', seen, 'v', 'EX', '1'})
    table.insert(commands, {'DEL', seen})
  end
  if aside then
    table.insert(commands, {'XADD', aside, 'NOMKSTREAM', '*', 'f', 'v'})
    table.insert(commands, {'HMGET', cursor, 'open'})
    table.insert(commands, {'RENAME', aside, events})
    table.insert(commands, {'HDEL', cursor, 'open'})
    table.insert(commands, {'XRANGE', events, '-', '+'})
    table.insert(commands, {'XDEL', events, '0-1'})
  end
  for _, command in ipairs(commands) do
    if not redis.acl_check_cmd(unpack(command)) then
      return redis.error_reply("NOPERM this user has no permissions to run the '" ..
        string.lower(command[1]) .. "' command on " .. command[2])
    end
  end
end

