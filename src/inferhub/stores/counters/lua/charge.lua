-- KEYS: the ticket, then the meters. ARGV: now or '', ticket, lease, how long to remember;
-- per meter: window, '1' if held, '1' if money, amount.
-- Answer: junk.
local now, ticket, lease, remember = now_ms(ARGV[1]), ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local at, is_over = ticket_of(KEYS[1])
if not is_over then
  for i = 2, #KEYS do
    local a = 4 * (i - 1) + 1
    local m = load(KEYS[i], ARGV[a], ARGV[a + 1] == '1', now, lease)
    if m.is_held then
      release(m, ticket)
    end
    if not m.is_held or ARGV[a + 2] == '1' then
      add(m, tonumber(ARGV[a + 3]), now)
    end
    save(m, now, lease)
  end
  redis.call('SET', KEYS[1], text(at or now) .. ' over', 'PX', remember)
end
return told({junk})
