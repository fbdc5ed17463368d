-- Appends one block to a replayed stream and advances its position, or does neither. The first
-- write is one that Redis refuses when memory is full.
--
-- KEYS  1 the stream  2 its position
-- ARGV  1 chain_id  2 from  3 filter  4 number of the block  5 its hash  6 its number of entries
--       7 the encoding  8 how many field names, then the names, then each entry's values in that order
local STREAM, POSITION = KEYS[1], KEYS[2]
local chain_id, from, filter, number, hash, count, encoding = unpack(ARGV, 1, 7)

for i, kind in ipairs({'stream', 'hash'}) do
  local found = redis.call('TYPE', KEYS[i]).ok
  if found ~= 'none' and found ~= kind then return {'foreign', KEYS[i]} end
end
local held = {}
local fields = redis.call('HGETALL', POSITION)
for i = 1, #fields, 2 do held[fields[i]] = fields[i + 1] end
if #fields == 0 then
  if redis.call('XLEN', STREAM) > 0 then return {'foreign', STREAM} end
  if number ~= from then return {'moved'} end
elseif held.chain_id ~= chain_id or held.from ~= from or held.filter ~= filter
    or held.encoding ~= encoding then
  return {'moved'}
elseif tonumber(held.events) > 0 and redis.call('EXISTS', STREAM) == 0 then
  return {'gone'}
elseif held.last == number and held.hash == hash then
  return {'written'} -- by this very call, whose answer was lost
elseif tonumber(held.last) + 1 ~= tonumber(number) then
  return {'moved'}
end

local names = tonumber(ARGV[8])
local first = 9 + names
for at = first, #ARGV, names do
  local entry = {}
  for i = 0, names - 1 do
    entry[2 * i + 1] = ARGV[9 + i]
    entry[2 * i + 2] = ARGV[at + i]
  end
  redis.call('XADD', STREAM, '*', unpack(entry))
end
redis.call('HSET', POSITION, 'chain_id', chain_id, 'from', from, 'filter', filter,
  'encoding', encoding, 'last', number, 'hash', hash)
redis.call('HINCRBY', POSITION, 'events', count)
return {'written'}
