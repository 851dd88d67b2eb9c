-- KEYS: the ticket, then the meters. ARGV: now or '', ticket, lease, how long to remember;
-- per meter: window, '1' if held, limit, amount.
-- Answer: junk, granted, reserved at, refused meter, wait; per meter: used, left.
local now, ticket, lease, remember = now_ms(ARGV[1]), ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local at = ticket_of(KEYS[1])
local meters, refused, longest = {}, 0, 0
for i = 2, #KEYS do
  local a = 4 * (i - 1) + 1
  local m = load(KEYS[i], ARGV[a], ARGV[a + 1] == '1', now, lease)
  m.amount = tonumber(ARGV[a + 3])
  meters[i - 1] = m
  if not at and longest >= 0 then
    local waiting = wait(m, tonumber(ARGV[a + 2]), m.amount, now)
    if waiting < 0 or waiting > longest then
      refused, longest = i - 1, waiting
    end
  end
end
local is_new = not at and refused == 0
for _, m in ipairs(meters) do
  if is_new then
    if m.is_held then
      hold(m, ticket, m.amount, now + lease)
    else
      add(m, m.amount, now)
    end
  end
  if is_new or m.is_changed then
    save(m, now, lease)
  end
end
if is_new then
  at = now
  redis.call('SET', KEYS[1], text(now), 'PX', lease + remember)
end
local answer = {junk, refused == 0 and 1 or 0, at or now, refused, longest}
for _, m in ipairs(meters) do
  tell(answer, m, now, lease)
end
return told(answer)
