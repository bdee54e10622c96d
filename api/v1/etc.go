package v1

// EtcChange is one path in /etc that was changed on the machine, and what
// becomes of it under the defaults of an image.
type EtcChange struct {
	Path string `json:"path"` // with /etc
	// Change is what was done to it on the machine: added, modified, removed,
	// attributes (owner, mode or extended attributes alone), or ignored (a socket,
	// fifo or device, which no new root gets).
	Change string `json:"change"`
	// Image is what the image did to it: unchanged, changed, removed, or type
	// conflict where one has a directory and the other has none.
	Image string `json:"image"`
	// Result is what the new root has: kept (the machine's), merged (something of
	// both), taken (the image's, because a rule says so), or refused: nothing is
	// deployed until that is solved.
	Result string `json:"result"`
	// Conflict says that not all of what both sides did is in the result.
	Conflict bool `json:"conflict"`
	// Notes say what a merge of lines could not settle, or why there was none.
	Notes []string `json:"notes,omitempty"`
	// Lines are the entries that differ, of a file that is merged line by line.
	Lines []EtcLine `json:"lines,omitempty"`
}

// EtcLine is an entry of a file like /etc/passwd that was changed on the machine.
type EtcLine struct {
	Key string `json:"key"` // the user, group, range or mount point
	// Change is added, modified or removed.
	Change string `json:"change"`
}

// EtcReset is what a reset of paths in /etc did.
type EtcReset struct {
	// ID is the deployment whose /etc it is.
	ID string `json:"id"`
	// Reset are the paths that are now as in the image, sorted; what was so before
	// is not among them.
	Reset []string `json:"reset"`
}
