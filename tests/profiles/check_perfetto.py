"""Reads a trace with Perfetto's own description of the format, and says what is in it.

Strict: a field that the description does not have, or one of another type, is an error; so are
slices that are not balanced, time that goes back on a track, and numbers that stand for nothing.
Prints a JSON object for the test to compare.
"""

import json
import sys
from collections import Counter, defaultdict

from google.protobuf.unknown_fields import UnknownFieldSet
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as format

BEGIN, END, INSTANT, COUNTER = 1, 2, 3, 4


def refuse_unknown(message, path):
    unknown = [field.field_number for field in UnknownFieldSet(message)]
    assert not unknown, f"{path} has fields {unknown}, which are unknown"
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        values = [value] if hasattr(value, "DESCRIPTOR") else value
        for value in values:
            refuse_unknown(value, f"{path}.{field.name}")


class Interned:
    """What was said of each kind, by its number."""

    def __init__(self):
        self.known = defaultdict(dict)

    def add(self, data):
        for field, entries in data.ListFields():
            for entry in entries:
                kind = self.known[field.name]
                assert entry.iid > 0 and entry.iid not in kind, (field.name, entry.iid)
                kind[entry.iid] = entry
        # All that one packet says can be meant within it.
        for frame in data.frames:
            self.known["function_names"][frame.function_name_id]
            mapping = self.known["mappings"][frame.mapping_id]
            for path in mapping.path_string_ids:
                self.known["mapping_paths"][path]
            if mapping.build_id:
                self.known["build_ids"][mapping.build_id]
            if frame.source_path_iid:
                self.known["source_paths"][frame.source_path_iid]

    def stack(self, number):
        names = []
        for frame in self.known["callstacks"][number].frame_ids:
            function = self.known["frames"][frame].function_name_id
            names.append(self.known["function_names"][function].str.decode())
        return ";".join(names)


class Checker:
    def __init__(self):
        self.interned = Interned()
        self.tracks = {}
        self.open = defaultdict(list)
        self.last = defaultdict(int)
        self.slices = Counter()
        self.rows = defaultdict(list)
        self.counters = defaultdict(list)
        self.samples = Counter()

    def name(self, uuid):
        track = self.tracks[uuid]
        if track.HasField("process"):
            return f"process {track.process.pid} {track.process.process_name}"
        if track.HasField("thread"):
            assert self.tracks[track.parent_uuid].process.pid == track.thread.pid
            return f"thread {track.thread.tid} {track.thread.thread_name}"
        return track.name

    def event(self, at, event):
        track = event.track_uuid
        name = self.name(track)
        assert at >= self.last[track], f"time goes back on {name}"
        self.last[track] = at
        if event.type == COUNTER:
            assert self.tracks[track].HasField("counter")
            self.counters[name].append([at, event.counter_value])
            return
        if event.type == END:
            begun = self.open[track].pop()
            depth = len(self.open[track])
            self.rows[name].append([depth, *begun, at])
            self.slices[name] += 1
            return
        said = self.interned.known["event_names"][event.name_iid].name
        for category in event.category_iids:
            self.interned.known["event_categories"][category]
        notes = {}
        for note in event.debug_annotations:
            key = self.interned.known["debug_annotation_names"][note.name_iid].name
            notes[key] = note.string_value
        if event.callstack_iid:
            notes["stack"] = self.interned.stack(event.callstack_iid)
        if event.type == BEGIN:
            self.open[track].append([said, notes, at])
        else:
            assert event.type == INSTANT, event
            self.rows[name].append([said, notes, at])

    def packet(self, packet):
        assert packet.trusted_packet_sequence_id == 1
        if packet.HasField("interned_data"):
            self.interned.add(packet.interned_data)
        kind = packet.WhichOneof("data")
        if kind == "track_descriptor":
            track = packet.track_descriptor
            assert track.uuid not in self.tracks
            assert not track.parent_uuid or track.parent_uuid in self.tracks
            self.tracks[track.uuid] = track
        elif kind == "track_event":
            self.event(packet.timestamp, packet.track_event)
        elif kind == "perf_sample":
            sample = packet.perf_sample
            stack = self.interned.stack(sample.callstack_iid)
            self.samples[f"{sample.pid} {sample.tid} {stack}"] += 1
        else:
            assert kind == "clock_snapshot", kind


def main():
    trace = format.Trace()
    with open(sys.argv[1], "rb") as file:
        trace.ParseFromString(file.read())
    refuse_unknown(trace, "trace")
    checker = Checker()
    for packet in trace.packet:
        checker.packet(packet)
    left = [events for events in checker.open.values() if events]
    assert not left, f"slices that never end: {left}"
    first = trace.packet[0]
    found = {
        "clocks": {str(c.clock_id): c.timestamp for c in first.clock_snapshot.clocks},
        "tracks": sorted(checker.name(uuid) for uuid in checker.tracks),
        "slices": checker.slices,
        "rows": checker.rows,
        "counters": checker.counters,
        "samples": checker.samples,
    }
    print(json.dumps(found, sort_keys=True))


main()
