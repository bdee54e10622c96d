package host

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/internal/atomicfile"
)

// historyFile is beneath the store's StateDir.
const historyFile = "history"

// History returns every recorded change of the deployments, newest first.
// Lines that cannot be read (torn by a power cut, or of a later format) are
// left out.
func (h *Host) History(context.Context) ([]v1.HistoryEntry, error) {
	data, err := h.root.ReadFile(path.Join(h.store.StateDir(), historyFile))
	if errors.Is(err, fs.ErrNotExist) {
		return []v1.HistoryEntry{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the history: %w", err)
	}
	entries := parseHistory(data)
	slices.Reverse(entries)
	return entries, nil
}

func parseHistory(data []byte) []v1.HistoryEntry {
	entries := []v1.HistoryEntry{}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		var e v1.HistoryEntry
		if json.Unmarshal(lines.Bytes(), &e) == nil && e.V == v1.HistoryVersion {
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
	return atomicfile.SyncDir(root, dir)
}
