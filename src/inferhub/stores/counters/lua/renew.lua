-- For many reservations at once. KEYS: of each the ticket, then the meters that it holds.
-- ARGV: now or '', lease, how long to remember; per reservation: ticket, reserved at, number of meters;
-- per meter: window, amount.
-- Answer: junk.
local now, lease, remember = now_ms(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local k, a = 1, 4
while k <= #KEYS do
  local ticket, count = ARGV[a], tonumber(ARGV[a + 2])
  local known, is_over = ticket_of(KEYS[k])
  if not is_over then
    for i = 1, count do
      local m = load(KEYS[k + i], ARGV[a + 1 + 2 * i], true, now, lease)
      release(m, ticket)
      hold(m, ticket, tonumber(ARGV[a + 2 + 2 * i]), now + lease)
      save(m, now, lease)
    end
    redis.call('SET', KEYS[k], text(known or tonumber(ARGV[a + 1])), 'PX', lease + remember)
  end
  k, a = k + 1 + count, a + 3 + 2 * count
end
return told({junk})
