package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/boot/etcmerge"
	"github.com/kedge-os/kedge/pkg/boot/source"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ocibridge"
)

// planEtc says what becomes of the machine's changes to /etc under the target's
// defaults. Rules that cannot be read, and what cannot be merged, are problems.
func (h *Host) planEtc(ctx context.Context, p *v1.Plan, list deployments, image *source.Image) {
	from := list.current()
	if from == nil || !p.Changed {
		return
	}
	changes, err := h.etcPreview(ctx, from, image)
	switch {
	case errors.Is(err, errNotKept):
		p.Warnings = append(p.Warnings, "what becomes of local changes in /etc is known only when the image is here: its /etc is too large to look at")
		return
	case err != nil:
		p.Problems = append(p.Problems, fmt.Sprintf("merge /etc: %v", err))
		return
	}
	p.Etc = changes
	for _, c := range changes {
		if c.Result == etcmerge.Refused.String() {
			p.Problems = append(p.Problems, fmt.Sprintf("%s was changed on this host and in the image (%s), which cannot be merged", c.Path, c.Image))
		}
	}
}

// planStore is what is kept of an image that is only looked at: the databases of
// packages, and what a merge of /etc reads.
type planStore struct {
	*databaseStore
	mu    sync.Mutex
	small map[fstree.Digest][]byte
	size  int
}

func newPlanStore() *planStore {
	return &planStore{databaseStore: newDatabaseStore(), small: map[fstree.Digest][]byte{}}
}

// Bounds of what of /etc is kept in memory.
const (
	maxEtcFile  = 16 << 20
	maxEtcTotal = 64 << 20
)

// etcPrefixes are where an image has the defaults of /etc, and the rules.
var etcPrefixes = []string{"etc/", "usr/etc/", etcmerge.ImageRules + "/"}

// errNotKept is that a file of an image was looked at and not kept.
var errNotKept = errors.New("the file was not kept")

// Begin implements ocibridge.Store.
func (s *planStore) Begin(diffID string) (ocibridge.LayerWriter, error) {
	w, err := s.databaseStore.Begin(diffID)
	return planWriter{w, s}, err
}

type planWriter struct {
	ocibridge.LayerWriter
	s *planStore
}

// Put implements ocibridge.LayerWriter.
func (w planWriter) Put(name string, n *fstree.Inode, r io.Reader) (fstree.Digest, error) {
	keep := false
	for _, prefix := range etcPrefixes {
		keep = keep || strings.HasPrefix(strings.TrimPrefix(name, "./"), prefix)
	}
	if !keep {
		return w.LayerWriter.Put(name, n, r)
	}
	head := &capped{limit: maxEtcFile}
	d, err := w.LayerWriter.Put(name, n, io.TeeReader(r, head))
	if err != nil || head.over {
		return d, err
	}
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	if _, have := w.s.small[d]; !have && w.s.size+head.Len() <= maxEtcTotal {
		w.s.small[d] = head.Bytes()
		w.s.size += head.Len()
	}
	return d, nil
}

// capped keeps what is written to it, up to a limit.
type capped struct {
	bytes.Buffer
	limit int
	over  bool
}

func (c *capped) Write(p []byte) (int, error) {
	if c.over = c.over || c.Len()+len(p) > c.limit; c.over {
		c.Reset()
		return len(p), nil
	}
	return c.Buffer.Write(p)
}

// image is an image that was looked at, with the files of it that were kept.
func (s *planStore) image(ctx context.Context, t *fstree.Tree) *source.Image {
	return source.NewImage(ctx, t, func(_ context.Context, n *fstree.Inode) (io.ReadCloser, error) {
		if data, ok := s.small[n.Content]; ok || n.Size == 0 {
			return io.NopCloser(bytes.NewReader(data)), nil
		}
		r, err := s.open(n)
		if errors.Is(err, fs.ErrNotExist) {
			err = errNotKept
		}
		return r, err
	})
}
