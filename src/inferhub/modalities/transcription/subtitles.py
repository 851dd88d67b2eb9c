"""Transcripts as subtitles: SubRip and WebVTT. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable

from inferhub.modalities.transcription.deltas import Segment


def srt(segments: Iterable[Segment]) -> str:
    """SubRip: numbered, with a comma before the milliseconds."""
    blocks = [
        f"{number}\n{_time(cue.start, ',')} --> {_time(cue.end, ',')}\n{_who(cue, '{}: ')}{_text(cue)}\n"
        for number, cue in enumerate(_cues(segments), start=1)
    ]
    return "\n".join(blocks)


def vtt(segments: Iterable[Segment]) -> str:
    """WebVTT: a head, and a point before the milliseconds. A speaker is a voice span."""
    blocks = ["WEBVTT\n"]
    blocks += [
        f"{_time(cue.start, '.')} --> {_time(cue.end, '.')}\n{_who(cue, '<v {}>')}{_escaped(_text(cue))}\n"
        for cue in _cues(segments)
    ]
    return "\n".join(blocks)


def _cues(segments: Iterable[Segment]) -> Iterable[Segment]:
    return (segment for segment in segments if segment.text.strip())


def _who(cue: Segment, form: str) -> str:
    return form.format(cue.speaker) if cue.speaker else ""


def _text(cue: Segment) -> str:
    """On one line: an empty line would end the cue, and an arrow would begin another one."""
    return " ".join(cue.text.split()).replace("-->", "->")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _time(seconds: float, point: str) -> str:
    ms = round(seconds * 1000)
    minutes, ms = divmod(ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{ms // 1000:02}{point}{ms % 1000:03}"
