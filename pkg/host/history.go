package host

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/internal/atomicfile"
)

// historyFile is beneath the store's StateDir. It has at most maxHistory bytes
// and a line: enough for some thousand.
const (
	historyFile = "history"
	maxHistory  = 1 << 20
)

// History returns every recorded change of the deployments, newest first.
// Lines that cannot be read (torn by a power cut, or of a later format) are
// left out.
func (h *Host) History(context.Context) ([]v1.HistoryEntry, error) {
	entries, err := h.readHistory()
	slices.Reverse(entries)
	return entries, err
}

// readHistory returns what is recorded, oldest first.
func (h *Host) readHistory() ([]v1.HistoryEntry, error) {
	f, err := h.root.Open(path.Join(h.store.StateDir(), historyFile))
	if errors.Is(err, fs.ErrNotExist) {
		return []v1.HistoryEntry{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the history: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 2*maxHistory))
	if err != nil {
		return nil, fmt.Errorf("read the history: %w", err)
	}
	return parseHistory(data), nil
}

func parseHistory(data []byte) []v1.HistoryEntry {
	entries := []v1.HistoryEntry{}
	for line := range bytes.Lines(data) {
		var e v1.HistoryEntry
		if json.Unmarshal(line, &e) == nil && e.V == v1.HistoryVersion {
			entries = append(entries, e)
		}
	}
	return entries
}

// historyOf describes a change that a verb made to a deployment.
func historyOf(verb string, d *deployment) v1.HistoryEntry {
	e := v1.HistoryEntry{Verb: verb, Result: "done", ID: d.id, Image: d.origin.text}
	if d.staged {
		e.Result = "staged"
	}
	if d.image != nil {
		e.Digest, e.Version = d.image.digest, d.image.version
	}
	return e
}

// record adds a line to the history. It is called after the commit point, so
// a failure is logged and does not undo what was done.
func (h *Host) record(e v1.HistoryEntry) {
	e.V, e.Time = v1.HistoryVersion, h.cfg.Clock().UTC()
	if err := appendHistory(h.root, h.store.StateDir(), e); err != nil {
		h.cfg.Log.Warn("the history was not written", "error", err)
	}
}

func appendHistory(root *os.Root, dir string, e v1.HistoryEntry) error {
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if err := root.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := root.OpenFile(path.Join(dir, historyFile), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	// A line that a power cut tore must not swallow the next one.
	if st, err := f.Stat(); err == nil && st.Size() > 0 {
		last := make([]byte, 1)
		if _, err := f.ReadAt(last, st.Size()-1); err == nil && last[0] != '\n' {
			line = append([]byte{'\n'}, line...)
		}
	}
	if _, err := f.Write(append(line, '\n')); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if st, err := f.Stat(); err == nil && st.Size() > maxHistory {
		return shortenHistory(root, dir)
	}
	return atomicfile.SyncDir(root, dir)
}

// shortenHistory drops half of the history's bytes: first boots that came out as
// a later one of the same deployment did, then what is oldest.
func shortenHistory(root *os.Root, dir string) error {
	data, err := root.ReadFile(path.Join(dir, historyFile))
	if err != nil {
		return err
	}
	var kept [][]byte
	size := 0
	boots := map[string]bool{}
	for _, e := range slices.Backward(parseHistory(data)) {
		if key := e.ID + " " + e.Result; e.Verb == verbBoot {
			if boots[key] {
				continue
			}
			boots[key] = true
		}
		line, err := json.Marshal(e)
		if err != nil {
			return err
		}
		if size += len(line) + 1; size > maxHistory/2 {
			break
		}
		kept = append(kept, line)
	}
	slices.Reverse(kept)
	return atomicfile.Write(root, path.Join(dir, historyFile), append(bytes.Join(kept, []byte("\n")), '\n'), 0o644)
}
