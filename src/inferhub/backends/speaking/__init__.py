"""What every engine that speaks needs, and no engine itself.

    backend   one call: plan, clauses, sound, encoding     clauses   a text in pieces, the first one short
    plan      what a request means here                     voices    who there is, aliases, blends
    moods     emotion presets                               phonemes  text → phonemes, a language at a time
    espeak    an optional program for some languages        eastern   optional packages for Japanese, Chinese

Used by `backends/hibari` and `backends/kokoro`. Nothing here opens a socket or loads weights.
"""
