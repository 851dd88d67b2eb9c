-- What every script of the counters begins with. `window.py` says the same in Python.
--
-- A meter is one hash, so that nothing can be lost in part:
--   u  used: of the last minute, or since the period began
--   minute:     o, n  the oldest and newest second; SECOND -> amount
--   day, month: p     when the period ends
--   held:       h     held by live tickets; e  no hold ends before; t:TICKET -> AMOUNT:UNTIL
-- A ticket is a string: AT, the time of its reservation, with ' over' behind it once settled or charged.
-- Every time is in milliseconds of this server's clock, and every key has a time to live.

local MAX = 9007199254740991
local SPAN = 61
local DAY = 86400000
local LONGEST = {day = DAY, month = 31 * DAY}
local BACKWARD = 25 * 3600000
local HOLD_RETRY = 1000
local junk = 0

-- Lua would write 1e+15.
local function text(number)
  return string.format('%.0f', number)
end

-- A number that these scripts can have written, or nil.
local function number(value)
  value = tonumber(value)
  if value and value >= 0 and value <= MAX then
    return math.floor(value)
  end
end

local function now_ms(given)
  if given ~= '' then
    return tonumber(given)
  end
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- What nobody here wrote must not stop anybody: it is deleted, and the caller says so in its log.
local function throw_away(key)
  redis.call('DEL', key)
  junk = junk + 1
end

local function fields(key, ...)
  local values = redis.pcall('HMGET', key, ...)
  if values.err then
    throw_away(key)
    return {}
  end
  for _, value in ipairs(values) do
    if value and not number(value) then
      throw_away(key)
      return {}
    end
  end
  return values
end

-- The days from 1970 to the first of a month; months count from 0 and may be 12.
local function days_to(year, month)
  year = year + math.floor(month / 12)
  month = month % 12
  local before = year - 1
  local leaps = math.floor(before / 4) - math.floor(before / 100) + math.floor(before / 400) - 477
  local days = (year - 1970) * 365 + leaps
  local lengths = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31}
  if year % 4 == 0 and (year % 100 ~= 0 or year % 400 == 0) then
    lengths[2] = 29
  end
  for i = 1, month do
    days = days + lengths[i]
  end
  return days
end

local function period_end(window, at)
  local day = math.floor(at / DAY)
  if window == 'day' then
    return (day + 1) * DAY
  end
  local year = 1970 + math.floor(day / 365.2425)
  if days_to(year, 0) > day then
    year = year - 1
  elseif days_to(year + 1, 0) <= day then
    year = year + 1
  end
  local month = 0
  while days_to(year, month + 1) <= day do
    month = month + 1
  end
  return days_to(year, month + 1) * DAY
end

-- Drop the seconds that are over. Those ahead of a clock that was set back count as of now.
local function slide(m, second)
  if m.oldest > second - SPAN and m.newest <= second then
    return
  end
  local all = redis.call('HGETALL', m.key)
  local over, kept, folded = {}, {}, 0
  m.used, m.oldest, m.newest = 0, second, 0
  for i = 1, #all, 2 do
    local at, amount = tonumber(all[i]), number(all[i + 1]) or 0
    if at then
      if at > second then
        folded = folded + amount
      elseif at > second - SPAN then
        kept[at] = amount
        m.used = m.used + amount
        m.oldest = math.min(m.oldest, at)
        m.newest = math.max(m.newest, at)
      end
      if at > second or at <= second - SPAN then
        over[#over + 1] = all[i]
      end
    end
  end
  for i = 1, #over, 500 do
    redis.call('HDEL', m.key, unpack(over, i, math.min(i + 499, #over)))
  end
  if folded > 0 then
    m.used = math.min(MAX, m.used + folded)
    m.newest = second
    redis.call('HSET', m.key, text(second), text((kept[second] or 0) + folded))
  end
  m.is_changed = true
end

local function turn(m, now)
  if now >= m.ends then
    m.used, m.ends = 0, period_end(m.window, now)
  elseif m.ends - now > LONGEST[m.window] + BACKWARD then
    m.ends = period_end(m.window, now)
    m.is_changed = true
  end
end

-- A lapsed block of money counts as spent, and its ticket is over.
local function spend_lapsed(m, ticket, amount, now, lease)
  if m.window ~= 'now' and string.sub(ticket, 1, 4) == 'blk_' then
    m.used = math.min(MAX, m.used + amount)
    redis.call('SET', string.match(m.key, '^(.-)m:') .. 't:' .. ticket, text(now) .. ' over', 'PX', 20 * lease)
  end
end

-- Give back what lapsed. `e` is early where a call was renewed or is over, and then put right.
local function lapse(m, now, lease)
  if m.held == 0 and m.earliest == 0 or now < m.earliest and m.earliest <= now + lease then
    return
  end
  local all = redis.call('HGETALL', m.key)
  m.held, m.earliest = 0, 0
  for i = 1, #all, 2 do
    if string.sub(all[i], 1, 2) == 't:' then
      local amount, till = string.match(all[i + 1], '^(%d+):(%d+)$')
      till = number(till)
      if not till or till <= now then
        redis.call('HDEL', m.key, all[i])
        spend_lapsed(m, string.sub(all[i], 3), number(amount) or 0, now, lease)
      else
        if till > now + lease then -- the clock was set back
          till = now + lease
          redis.call('HSET', m.key, all[i], amount .. ':' .. text(till))
        end
        m.held = math.min(MAX, m.held + (number(amount) or 0))
        m.earliest = m.earliest == 0 and till or math.min(m.earliest, till)
      end
    end
  end
  m.is_changed = true
end

local function load(key, window, is_held, now, lease)
  local m = {key = key, window = window, is_held = is_held, held = 0}
  if window == 'minute' then
    local v = fields(key, 'u', 'o', 'n')
    local second = math.floor(now / 1000)
    m.used, m.oldest, m.newest = number(v[1]) or 0, number(v[2]) or second, number(v[3]) or 0
    slide(m, second)
    return m
  end
  local v = fields(key, 'u', 'p', 'h', 'e')
  m.used, m.ends = number(v[1]) or 0, number(v[2]) or 0
  if window ~= 'now' then
    turn(m, now)
  end
  if is_held then
    m.held, m.earliest = number(v[3]) or 0, number(v[4]) or 0
    lapse(m, now, lease)
  end
  return m
end

local function save(m, now, lease)
  if m.window == 'minute' then
    redis.call('HSET', m.key, 'u', text(m.used), 'o', text(m.oldest), 'n', text(m.newest))
    redis.call('PEXPIRE', m.key, (SPAN + 1) * 1000)
  elseif m.window == 'now' then
    redis.call('HSET', m.key, 'h', text(m.held), 'e', text(m.earliest))
    redis.call('PEXPIRE', m.key, 2 * lease)
  else
    if m.is_held then
      redis.call('HSET', m.key, 'u', text(m.used), 'p', text(m.ends), 'h', text(m.held), 'e', text(m.earliest))
    else
      redis.call('HSET', m.key, 'u', text(m.used), 'p', text(m.ends))
    end
    redis.call('PEXPIRE', m.key, text(m.ends - now + DAY))
  end
end

local function add(m, amount, now)
  amount = math.min(amount, MAX - m.used)
  m.used = m.used + amount
  if m.window == 'minute' and amount > 0 then
    local second = math.floor(now / 1000)
    local counted = number(redis.call('HGET', m.key, text(second))) or 0
    redis.call('HSET', m.key, text(second), text(counted + amount))
    m.oldest, m.newest = math.min(m.oldest, second), second
  end
end

local function take_back(m, amount, at)
  if m.window == 'minute' then
    local second = text(math.floor(at / 1000))
    local counted = number(redis.call('HGET', m.key, second)) or 0
    amount = math.min(amount, counted)
    if amount > 0 then
      redis.call('HSET', m.key, second, text(counted - amount))
      m.used = math.max(0, m.used - amount)
    end
  elseif period_end(m.window, at) == m.ends then
    m.used = math.max(0, m.used - amount)
  end
end

local function hold(m, ticket, amount, till)
  if amount == 0 then
    return
  end
  redis.call('HSET', m.key, 't:' .. ticket, text(amount) .. ':' .. text(till))
  m.held = math.min(MAX, m.held + amount)
  m.earliest = m.earliest == 0 and till or math.min(m.earliest, till)
end

local function release(m, ticket)
  local field = 't:' .. ticket
  local amount = string.match(redis.call('HGET', m.key, field) or '', '^(%d+):')
  if amount then
    redis.call('HDEL', m.key, field)
    m.held = math.max(0, m.held - (number(amount) or 0))
    if m.held == 0 then
      m.earliest = 0
    end
  end
end

-- 0 for now, -1 for never.
local function wait(m, limit, amount, now)
  if amount > limit then
    return -1
  end
  local excess = m.used + m.held + amount - limit
  if excess <= 0 then
    return 0
  end
  if m.window == 'minute' then
    for second = m.oldest, m.newest do
      excess = excess - (number(redis.call('HGET', m.key, text(second))) or 0)
      if excess <= 0 then
        return (second + SPAN) * 1000 - now
      end
    end
  end
  if m.window == 'now' or m.used + amount <= limit then
    return HOLD_RETRY
  end
  return m.window == 'minute' and SPAN * 1000 or m.ends - now
end

-- Append what a `Reading` is made of: used, and the time until it would be empty.
local function tell(answer, m, now, lease)
  local used, left = math.min(MAX, m.used + m.held), 0
  if used > 0 then
    if m.window == 'now' then
      left = lease
    elseif m.window == 'minute' then
      left = (m.newest + SPAN) * 1000 - now
    else
      left = m.ends - now
    end
  end
  answer[#answer + 1] = used
  answer[#answer + 1] = left
end

-- When it was reserved, or nil where it is not known; and whether it is over.
local function ticket_of(key)
  local value = redis.pcall('GET', key)
  if type(value) == 'table' then
    throw_away(key)
    return nil, false
  end
  if not value then
    return nil, false
  end
  local at, state = string.match(value, '^(%d+)(.*)$')
  if not at then
    throw_away(key)
    return nil, false
  end
  return number(at), state == ' over'
end

-- One string of numbers: a client reads it in one go.
local function told(answer)
  for i, value in ipairs(answer) do
    answer[i] = text(value)
  end
  return table.concat(answer, ' ')
end
