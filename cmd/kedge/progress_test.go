package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/ocibridge"
)

func layers() []ocibridge.LayerProgress {
	return []ocibridge.LayerProgress{
		{Digest: "sha256:" + strings.Repeat("a", 64), Size: 80e6, Name: "kernel"},
		{Digest: "sha256:" + strings.Repeat("b", 64), Size: 20e6},
		{Digest: "sha256:" + strings.Repeat("c", 64), Size: 300e6, Cached: true},
	}
}

func at(fraction float64) snapshot {
	s := snapshot{elapsed: 5 * time.Second, rate: 10e6}
	for _, l := range layers() {
		s.layers = append(s.layers, layerState{LayerProgress: l, bytes: int64(fraction * float64(l.Size))})
	}
	return s
}

func TestPlainProgress(t *testing.T) {
	var b bytes.Buffer
	p := &progress{renderers: []renderer{&plain{w: &b}}}
	p.Layers(layers())
	p.Bytes(0, 80e6)
	p.Done(0)
	p.Done(1)
	p.Step(v1.TaskImporting, "Importing the image")
	p.Close(true)
	p.Close(true)
	lines := strings.Split(b.String(), "\n")
	if len(lines) != 4 || lines[0] != "Fetching 2 layers, 100.0 MB (1 layer, 300.0 MB already here)" ||
		!strings.HasPrefix(lines[1], "Fetched 100.0 MB in ") || lines[2] != "Importing the image" {
		t.Errorf("plain progress:\n%s", b.String())
	}
}

func TestNothingToFetch(t *testing.T) {
	var b bytes.Buffer
	p := &progress{renderers: []renderer{&plain{w: &b}}}
	p.Layers(layers()[2:])
	p.Close(true)
	if got := b.String(); got != "Nothing to fetch (1 layer, 300.0 MB already here)\n" {
		t.Errorf("plain progress: %q", got)
	}
}

func TestTerminalProgress(t *testing.T) {
	var b bytes.Buffer
	term := &terminal{w: &b, width: 70}
	term.begin(at(0))
	term.tick(at(0.5))
	want := "\x1b[1A\r\x1b[J  aaaaaaaaaaaa  40.0 MB/80.0 MB  kernel\n  bbbbbbbbbbbb  10.0 MB/20.0 MB  layer\n" +
		"Fetching 0/2 layers  50.0 MB/100.0 MB  10.0 MB/s  5.0 s left\n"
	if got := b.String(); !strings.HasSuffix(got, want) {
		t.Errorf("terminal progress = %q, want it to end with %q", got, want)
	}
	b.Reset()
	term.width = 30
	term.tick(at(0.5))
	for line := range strings.Lines(strings.TrimPrefix(b.String(), "\x1b[3A\r\x1b[J")) {
		if len(line) > 30 {
			t.Errorf("a line of %d characters on a terminal of 30: %q", len(line), line)
		}
	}
}

// TestProgressJSON checks the lines against what bootc's schema demands of
// each type of event.
func TestProgressJSON(t *testing.T) {
	var b bytes.Buffer
	j := newJSONLines(&b)
	j.begin(at(0))
	j.tick(at(0.5))
	j.done(at(1))
	j.step(v1.TaskImporting, "Importing the image")
	j.step(v1.TaskStaging, "Deploying the image")
	j.close(true)
	required := map[string][]string{
		"Start":         {"version"},
		"ProgressBytes": {"task", "description", "id", "bytesCached", "bytes", "bytesTotal", "stepsCached", "steps", "stepsTotal", "subtasks"},
		"ProgressSteps": {"task", "description", "id", "stepsCached", "steps", "stepsTotal", "subtasks"},
	}
	var types []string
	for line := range strings.Lines(b.String()) {
		var event map[string]any
		if err := json.Unmarshal([]byte(line), &event); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		kind, _ := event["type"].(string)
		types = append(types, kind)
		for _, field := range required[kind] {
			if _, ok := event[field]; !ok {
				t.Errorf("event %s has no %s: %s", kind, field, line)
			}
		}
	}
	want := "Start ProgressBytes ProgressBytes ProgressBytes ProgressSteps ProgressSteps ProgressSteps ProgressSteps"
	if got := strings.Join(types, " "); got != want {
		t.Errorf("events = %s, want %s", got, want)
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "1.0 kB", 1_250_000: "1.2 MB", 3e12: "3.0 TB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %s, want %s", n, got, want)
		}
	}
}
