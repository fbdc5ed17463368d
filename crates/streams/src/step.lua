-- One step of a chain, applied as a whole or not at all. Every check that can refuse the step, except
-- the last one of `close`, is made before the first write. The first write is one that Redis refuses
-- when memory is full (HSET, XADD, XSETID, XGROUP CREATE): once a script has written, Redis no longer
-- refuses it.
--
-- A step without entries is one call. One with entries is a transaction: a call that opens the step,
-- an XADD for each entry, and a call that closes it. The opening call either refuses or renames the
-- stream to the key that the XADDs use. As these do not create a stream (NOMKSTREAM), neither they nor
-- the closing call, which renames the stream back, do anything if the opening call refused. No other
-- client sees the state in between.
--
-- KEYS  1 events  2 blocks  3 cursor  4 seen (add and remove)  5 aside (with entries)
-- ARGV  1 op  2 writer  3 epoch  4 seq  5 tip hash: what the caller believes the cursor holds
--       6 the least IDs that the last IDs of events and blocks may have, separated by a space; empty if
--       that need not be checked
--       alarm: 7 its text. All other ops, the marker:
--       7 seq  8 number  9 hash  10 parent_hash  11 timestamp  12 events  13 proof  14 filter
--       15 number and 16 hash of the tip after the step
--       17 lifetime of the dedup record in seconds  18 encoding
--       19 `open` or `close`; empty for a step without entries
local EVENTS, BLOCKS, CURSOR, SEEN, ASIDE = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local op, writer, epoch, seq, tip, floor = unpack(ARGV, 1, 6)
local next_seq, number, hash, parent, timestamp, count, proof, filter = unpack(ARGV, 7, 14)
local tip_number, tip_hash, ttl, encoding, part = unpack(ARGV, 15, 19)

-- Readers see a retreat as a `finalized` marker: the finalized block from now on.
local kind = op == 'retreat' and 'finalized' or op

-- Writes marker, cursor and dedup record, after the entries.
local function record(first_id, last_id)
  local marker = redis.pcall('XADD', BLOCKS, '*',
    'seq', next_seq, 'op', kind, 'number', number, 'hash', hash, 'parent_hash', parent,
    'timestamp', timestamp, 'events', count, 'first_id', first_id, 'last_id', last_id,
    'proof', proof, 'filter', filter)
  if type(marker) == 'table' then
    -- The last possible ID is taken.
    if first_id ~= '' then delete_from(EVENTS, first_id) end
    return marker
  end
  if op == 'retreat' then
    redis.call('HSET', CURSOR,
      'seq', next_seq, 'finalized_number', number, 'finalized_hash', hash, 'alarm', '')
  elseif op == 'finalized' then
    redis.call('HSET', CURSOR, 'seq', next_seq, 'finalized_number', number, 'finalized_hash', hash)
  else
    redis.call('HSET', CURSOR,
      'seq', next_seq, 'number', tip_number, 'hash', tip_hash, 'filter', filter)
  end
  if op == 'add' and first_id ~= '' then
    redis.call('SET', SEEN, count .. ' ' .. first_id .. ' ' .. last_id, 'EX', ttl)
  elseif op == 'remove' then
    redis.call('DEL', SEEN)
  end
  return {'published', first_id, last_id, count, marker}
end

local function refused(why)
  return {'refused', op .. ' of block ' .. number .. ' ' .. hash .. ': ' .. why}
end

-- ID of the stream's newest entry.
local function newest_id(stream)
  local newest = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
  return newest and newest[1] or '0-0'
end

if part == 'close' then
  local last_id, length = put_back(EVENTS, ASIDE, CURSOR)
  if not last_id then return {'not_open'} end
  local first = '(' .. last_id
  if redis.call('XLEN', EVENTS) - length ~= tonumber(count) then
    -- The user lost the right to XADD after the command was queued and before it ran.
    delete_from(EVENTS, first)
    return refused('not all entries were written')
  end
  return record(redis.call('XRANGE', EVENTS, first, '+', 'COUNT', 1)[1][1], newest_id(EVENTS))
end

local mistyped = wrong_type(KEYS, {'stream', 'stream', 'hash', 'string'})
if mistyped then return mistyped end

local held = {}
local fields = redis.call('HGETALL', CURSOR)
for i = 1, #fields, 2 do held[fields[i]] = fields[i + 1] end

local function moved()
  table.insert(fields, 1, 'moved')
  return fields
end

if #fields == 0 then return moved() end
if held.writer ~= writer or held.epoch ~= epoch then
  return {'fenced', held.writer or '', held.epoch or '0'}
end
local wrong = contradiction(EVENTS, BLOCKS, held.seq)
if wrong then return {'inconsistent', wrong} end
local in_place = held.seq == seq and held.hash == tip

if op == 'alarm' then
  if not in_place then return moved() end
  redis.call('HSET', CURSOR, 'alarm', ARGV[7])
  return {'published', '', '0-0', '0', '0-0'}
end
if op ~= 'retreat' and held.alarm ~= '' then return {'alarmed', held.alarm} end

-- This very step may already be in: the caller repeats it because the answer was lost.
if held.seq == next_seq then
  local marker, id = newest_marker(BLOCKS)
  if marker.seq == next_seq and marker.op == kind and marker.hash == hash then
    return {'published', marker.first_id, marker.last_id, marker.events, id}
  end
end

if op == 'add' then
  local seen = redis.call('GET', SEEN)
  if seen then
    if in_place and (tip == '' or parent == tip) then
      return {'inconsistent', 'the dedup record of block ' .. number .. ' ' .. hash ..
        ' exists, but the cursor is before it'}
    end
    return {'duplicate', string.match(seen, '^%d+') or '0'}
  end
  if in_place and hash == tip then return {'duplicate', count} end
end
if part == 'open' and redis.call('EXISTS', ASIDE) == 1 then
  return {'inconsistent', 'the key ' .. ASIDE .. ' exists outside of a step'}
end
-- Another encoding means another stream: the chain was reset and restarted in the meantime.
if not in_place or held.encoding ~= encoding then return moved() end

local n = tonumber(number)
local final = held.finalized_hash ~= '' and tonumber(held.finalized_number)
if op == 'add' then
  if tip ~= '' and parent ~= tip then
    return refused('its parent is ' .. parent .. ', the tip is ' .. tip)
  end
  local want = tip == '' and tonumber(held.start_number) or tonumber(held.number) + 1
  if n ~= want then return refused(string.format('the next block is %.0f', want)) end
elseif op == 'remove' then
  if hash ~= tip or n ~= tonumber(held.number) then return refused('the tip is ' .. tip) end
  if final and n <= final then return refused(string.format('%.0f is finalized', final)) end
elseif op == 'gap' then
  local least = tip == '' and tonumber(held.start_number) or tonumber(held.number) + 1
  if n < least then return refused(string.format('a gap must not end below %.0f', least)) end
elseif op == 'retreat' then
  if held.alarm == '' then return refused('no alarm is latched') end
  if not final or n > final then return refused('it is not at or below the finalized block') end
elseif op == 'finalized' then
  if tip == '' or n > tonumber(held.number) then return refused('it is above the tip') end
  if final and n == final and hash == held.finalized_hash then return {'duplicate', '0'} end
  if final and n <= final then
    return refused(string.format('%.0f ', final) .. held.finalized_hash .. ' is finalized')
  end
end

local missing_right = denied(EVENTS, BLOCKS, CURSOR, SEEN, ASIDE)
if missing_right then return missing_right end

-- Compares IDs as numbers: both parts are decimals without leading zeros.
local function below(a, b)
  local am, as = string.match(a, '^(%d+)-(%d+)$')
  local bm, bs = string.match(b, '^(%d+)-(%d+)$')
  if am ~= bm then return #am < #bm or (#am == #bm and am < bm) end
  return #as < #bs or (#as == #bs and as < bs)
end

-- Creates an empty stream if there is none.
local function make(stream)
  if redis.call('EXISTS', stream) == 1 then return end
  redis.call('XGROUP', 'CREATE', stream, 'ethhook-make', '0', 'MKSTREAM')
  redis.call('XGROUP', 'DESTROY', stream, 'ethhook-make')
end

-- A failover may have lost entries and markers whose IDs readers have already seen. Readers wait for
-- higher IDs and would miss those with lower ones.
local function lift(stream, least)
  if not below(last_generated_id(stream), least) then return end
  make(stream)
  redis.call('XSETID', stream, least)
end

if floor ~= '' then
  local least_event, least_marker = string.match(floor, '^(%S+) (%S+)$')
  lift(EVENTS, least_event)
  lift(BLOCKS, least_marker)
end

if part ~= 'open' then return record('', last_generated_id(EVENTS)) end

local length = redis.call('XLEN', EVENTS)
if length == 0 then make(EVENTS) end
redis.call('HSET', CURSOR, 'open', newest_id(EVENTS) .. ' ' .. length)
redis.call('RENAME', EVENTS, ASIDE)
return {'open'}
