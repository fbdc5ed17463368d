-- Takes the lease: from nobody, from oneself, never from another. The cursor's epoch rises by one,
-- which fences whoever held it before; a cursor is made where there is none.
--
-- KEYS  1 lease  2 cursor  3 events  4 blocks  5 a name beside the dedup records
--       6 aside
-- ARGV  1 writer  2 TTL in ms  3 schema  4 encoding; empty: whichever the cursor has
--       from 5 on, names and values of the first cursor; none if there must be one
local LEASE, CURSOR, EVENTS, BLOCKS, PROBE, ASIDE = unpack(KEYS)

for i, kind in ipairs({'string', 'hash', 'stream', 'stream'}) do
  local found = redis.call('TYPE', KEYS[i]).ok
  if found ~= 'none' and found ~= kind then return {'wrong_type', KEYS[i], found, kind} end
end
local owner = redis.call('GET', LEASE)
if owner and owner ~= ARGV[1] then
  return {'held', owner, tostring(redis.call('PTTL', LEASE))}
end

local made = redis.call('EXISTS', CURSOR) == 0
if made then
  local left = {}
  for _, key in ipairs({EVENTS, BLOCKS}) do
    -- A stream without entries is a consumer's that made its group before we came.
    if redis.call('XLEN', key) > 0 then table.insert(left, key) end
  end
  if #left > 0 then return {'leftovers', unpack(left)} end
  if #ARGV < 5 then return {'no_cursor'} end
else
  local schema, encoding = unpack(redis.call('HMGET', CURSOR, 'schema', 'encoding'))
  if schema ~= ARGV[3] then return {'schema', schema or ''} end
  if ARGV[4] ~= '' and encoding ~= ARGV[4] then return {'encoding', encoding or ''} end
end

-- Rights on every key that the step writes, tried by calls that change nothing: a right that is
-- missing in the middle of a step would leave it half-written.
--
-- The first write is one that full memory does not refuse: without a lease nothing would be trimmed.
redis.call('DEL', PROBE)
local harmless = {
  {'greater than 0-0', 'XADD', EVENTS, 'NOMKSTREAM', '0-0', 'f', 'v'},
  {'greater than 0-0', 'XADD', BLOCKS, 'NOMKSTREAM', '0-0', 'f', 'v'},
  {'greater than 0-0', 'XADD', ASIDE, 'NOMKSTREAM', '0-0', 'f', 'v'},
  {'no such key', 'RENAME', EVENTS, EVENTS},
  {'no such key', 'RENAME', ASIDE, ASIDE},
  {'none', 'XDEL', EVENTS, '0-0'},
  {'none', 'HDEL', CURSOR, 'open'},
}
for _, try in ipairs(harmless) do
  local answer = redis.pcall(unpack(try, 2))
  if type(answer) == 'table' and answer.err and not string.find(answer.err, try[1], 1, true) then
    return answer
  end
end
redis.call('SET', PROBE, '', 'XX', 'EX', 1)

if made then redis.call('HSET', CURSOR, unpack(ARGV, 5)) end
redis.call('HINCRBY', CURSOR, 'epoch', 1)
redis.call('HSET', CURSOR, 'writer', ARGV[1])
redis.call('SET', LEASE, ARGV[1], 'PX', ARGV[2])
local reply = redis.call('HGETALL', CURSOR)
table.insert(reply, 1, 'taken')
return reply
