-- KEYS: the ticket, then the meters. ARGV: now or '', ticket, lease, how long to remember, reserved at;
-- per meter: window, '1' if held, '1' if money, reserved, used.
-- Answer: junk; per meter: used, left.
local now, ticket, lease, remember = now_ms(ARGV[1]), ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local known, is_over = ticket_of(KEYS[1])
local at = known or tonumber(ARGV[5])
local meters = {}
for i = 2, #KEYS do
  local a = 5 * (i - 1) + 1
  local m = load(KEYS[i], ARGV[a], ARGV[a + 1] == '1', now, lease)
  meters[i - 1] = m
  if not is_over then
    local reserved, used = tonumber(ARGV[a + 3]), tonumber(ARGV[a + 4])
    if m.is_held then
      release(m, ticket)
      if ARGV[a + 2] == '1' then
        add(m, used, now)
      end
    elseif used < reserved then
      take_back(m, reserved - used, at)
    else
      add(m, used - reserved, now)
    end
  end
  if not is_over or m.is_changed then
    save(m, now, lease)
  end
end
if not is_over then
  redis.call('SET', KEYS[1], text(at) .. ' over', 'PX', remember)
end
local answer = {junk}
for _, m in ipairs(meters) do
  tell(answer, m, now, lease)
end
return told(answer)
