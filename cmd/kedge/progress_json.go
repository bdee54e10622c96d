package main

import (
	"encoding/json"
	"io"

	v1 "github.com/kedge-os/kedge/api/v1"
)

// jsonLines writes bootc's progress protocol, version 0.
type jsonLines struct {
	enc  *json.Encoder
	open *v1.ProgressSteps // the step that runs
}

func newJSONLines(w io.Writer) *jsonLines {
	j := &jsonLines{enc: json.NewEncoder(w)}
	j.write(v1.ProgressStart{Type: "Start", Version: v1.ProgressVersion})
	return j
}

// write ignores errors: a reader that went away stops nothing.
func (j *jsonLines) write(event any) { _ = j.enc.Encode(event) }

func (j *jsonLines) begin(s snapshot) { j.tick(s) }
func (j *jsonLines) done(s snapshot)  { j.tick(s) }

func (j *jsonLines) tick(s snapshot) {
	t := s.totals()
	event := v1.ProgressBytes{
		Type: "ProgressBytes", Task: v1.TaskPulling, ID: v1.TaskPulling, Description: "Pulling image",
		BytesCached: uint64(t.cached), Bytes: uint64(t.bytes), BytesTotal: uint64(t.total),
		StepsCached: uint64(t.layersReady), Steps: uint64(t.layers), StepsTotal: uint64(t.layersTotal),
		Subtasks: []v1.SubTaskBytes{},
	}
	for _, l := range s.layers {
		if l.Cached || l.bytes == 0 {
			continue
		}
		name := l.Name
		if name == "" {
			name = "Layer"
		}
		event.Subtasks = append(event.Subtasks, v1.SubTaskBytes{
			Subtask: "layer", Description: name, ID: l.Digest,
			Bytes: uint64(min(l.bytes, l.Size)), BytesTotal: uint64(l.Size),
		})
	}
	j.write(event)
}

func (j *jsonLines) step(task, description string) {
	j.finish()
	j.open = &v1.ProgressSteps{
		Type: "ProgressSteps", Task: task, ID: task, Description: description, StepsTotal: 1,
		Subtasks: []v1.SubTaskStep{{Subtask: task, Description: description, ID: task}},
	}
	j.write(j.open)
}

func (j *jsonLines) finish() {
	if j.open == nil {
		return
	}
	j.open.Steps = 1
	j.open.Subtasks[0].Completed = true
	j.write(j.open)
	j.open = nil
}

func (j *jsonLines) close(ok bool) {
	if ok {
		j.finish()
	}
}
