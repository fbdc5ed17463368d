-- Takes the lease if it is free or the caller's own, never from another writer. Increments the
-- cursor's epoch, which fences the previous holder, and creates the cursor if there is none.
--
-- KEYS  1 lease  2 cursor  3 events  4 blocks  5 a key named like a dedup record, to test rights
--       6 aside
-- ARGV  1 writer  2 TTL in ms  3 schema  4 encoding; empty to accept the cursor's
--       from 5 on, names and values of the first cursor; none if the cursor must exist
local LEASE, CURSOR, EVENTS, BLOCKS, PROBE, ASIDE = unpack(KEYS)

local mistyped = wrong_type(KEYS, {'string', 'hash', 'stream', 'stream'})
if mistyped then return mistyped end
local owner = redis.call('GET', LEASE)
if owner and owner ~= ARGV[1] then
  return {'held', owner, tostring(redis.call('PTTL', LEASE))}
end

local missing_right = denied(EVENTS, BLOCKS, CURSOR, PROBE, ASIDE)
if missing_right then return missing_right end

local made = redis.call('EXISTS', CURSOR) == 0
if made then
  local left = {}
  for _, key in ipairs({EVENTS, BLOCKS}) do
    -- A consumer may have created its group, and so an empty stream, before the first writer.
    if redis.call('XLEN', key) > 0 then table.insert(left, key) end
  end
  if #left > 0 then return {'leftovers', unpack(left)} end
  if #ARGV < 5 then return {'no_cursor'} end
else
  local schema, encoding, seq = unpack(redis.call('HMGET', CURSOR, 'schema', 'encoding', 'seq'))
  if schema ~= ARGV[3] then return {'schema', schema or ''} end
  if ARGV[4] ~= '' and encoding ~= ARGV[4] then return {'encoding', encoding or ''} end
  -- Redis refuses the second half of a step if the disk has failed since the first (MISCONF).
  if redis.call('TYPE', ASIDE).ok == 'stream' and redis.call('XLEN', EVENTS) == 0 then
    local last_id = put_back(EVENTS, ASIDE, CURSOR)
    if last_id then delete_from(EVENTS, '(' .. last_id) end
  end
  local wrong = contradiction(EVENTS, BLOCKS, seq)
  if wrong then return {'inconsistent', wrong} end
end

-- The first write is one that Redis accepts when memory is full: without a lease nothing would be trimmed.
redis.call('DEL', PROBE)
if made then redis.call('HSET', CURSOR, unpack(ARGV, 5)) end
redis.call('HINCRBY', CURSOR, 'epoch', 1)
redis.call('HSET', CURSOR, 'writer', ARGV[1])
redis.call('SET', LEASE, ARGV[1], 'PX', ARGV[2])
local reply = redis.call('HGETALL', CURSOR)
table.insert(reply, 1, 'taken')
return reply
