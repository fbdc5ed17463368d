-- Begins step.lua and take_lease.lua: finds out whether a stream was deleted under the cursor.

-- The last ID that a stream ever assigned; `0-0` if there is no stream.
local function last_generated_id(stream)
  if redis.call('EXISTS', stream) == 0 then return '0-0' end
  local info = redis.call('XINFO', 'STREAM', stream)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then return info[i + 1] end
  end
end

-- The fields of the newest marker, by name.
local function newest_marker(blocks)
  local marker = {}
  local fields = redis.call('XREVRANGE', blocks, '+', '-', 'COUNT', 1)[1][2]
  for i = 1, #fields, 2 do marker[fields[i]] = fields[i + 1] end
  return marker
end

-- Which of a chain's streams is gone, as a text; nil if neither is. Each step writes a marker, and
-- retention leaves the newest one. That one names the last ID of the event stream: `0-0` if there was
-- no event yet, and so perhaps no stream. An empty stream that never assigned an ID may come from a
-- consumer that created its group again.
local function gone(events, blocks, seq)
  if not seq or seq == '0' then return nil end
  local key
  if redis.call('XLEN', blocks) == 0 then
    key = blocks
  elseif redis.call('XLEN', events) == 0 and last_generated_id(events) == '0-0'
      and newest_marker(blocks).last_id ~= '0-0' then
    key = events
  end
  return key and 'the stream ' .. key .. ' is gone, although the cursor is at seq ' .. seq
end

