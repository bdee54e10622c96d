package v1

// ProgressVersion is the version of bootc's progress protocol that --progress-fd
// speaks: one JSON object a line, the first of them a ProgressStart.
const ProgressVersion = "0.1.0"

// The tasks of a deployment in their order.
const (
	TaskPulling   = "pulling"
	TaskImporting = "importing"
	TaskStaging   = "staging"
)

// ProgressStart is the first event.
type ProgressStart struct {
	Type    string `json:"type"` // Start
	Version string `json:"version"`
}

// ProgressBytes tells how far a task measured in bytes is.
type ProgressBytes struct {
	Type        string         `json:"type"` // ProgressBytes
	Task        string         `json:"task"`
	Description string         `json:"description"`
	ID          string         `json:"id"`
	BytesCached uint64         `json:"bytesCached"`
	Bytes       uint64         `json:"bytes"`
	BytesTotal  uint64         `json:"bytesTotal"`
	StepsCached uint64         `json:"stepsCached"`
	Steps       uint64         `json:"steps"`
	StepsTotal  uint64         `json:"stepsTotal"`
	Subtasks    []SubTaskBytes `json:"subtasks"`
}

// SubTaskBytes is one running layer of a ProgressBytes.
type SubTaskBytes struct {
	Subtask     string `json:"subtask"` // ostree_chunk or ostree_derived
	Description string `json:"description"`
	ID          string `json:"id"`
	BytesCached uint64 `json:"bytesCached"`
	Bytes       uint64 `json:"bytes"`
	BytesTotal  uint64 `json:"bytesTotal"`
}

// ProgressSteps tells how far a task measured in steps is.
type ProgressSteps struct {
	Type        string        `json:"type"` // ProgressSteps
	Task        string        `json:"task"`
	Description string        `json:"description"`
	ID          string        `json:"id"`
	StepsCached uint64        `json:"stepsCached"`
	Steps       uint64        `json:"steps"`
	StepsTotal  uint64        `json:"stepsTotal"`
	Subtasks    []SubTaskStep `json:"subtasks"`
}

// SubTaskStep is one step of a ProgressSteps.
type SubTaskStep struct {
	Subtask     string `json:"subtask"`
	Description string `json:"description"`
	ID          string `json:"id"`
	Completed   bool   `json:"completed"`
}
