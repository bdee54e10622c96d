package ostree

import (
	"cmp"
	"slices"

	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// recentFiles is what this process knows of regular file objects because it has
// just written a commit with them. A checksum covers all of it, so that it is
// never out of date.
type recentFiles struct {
	headers []object.Meta
	list    []recentFile // sorted by object
}

type recentFile struct {
	object Checksum
	size   int64
	header int32
}

// remember keeps what is known of the files of a set. It spares whoever deploys
// the commit the system calls that read each file's metadata back.
func (r *Repo) remember(s *objectSet) {
	f := &recentFiles{headers: make([]object.Meta, len(s.headers)), list: make([]recentFile, len(s.list))}
	for i, h := range s.headers {
		m := h.meta
		f.headers[i] = object.Meta{UID: m.UID, GID: m.GID, Mode: m.Mode, Xattrs: r.xattrs(m).All()}
	}
	for i := range s.list {
		it := &s.list[i]
		f.list[i] = recentFile{it.object, it.file.Size, it.header}
	}
	slices.SortFunc(f.list, func(a, b recentFile) int {
		return cmp.Or(a.object.Compare(b.object), cmp.Compare(a.header, b.header))
	})
	r.recent.Store(f)
}

// recentFile returns the metadata of a regular file object if it is known.
func (r *Repo) recentFile(sum Checksum) (m FileMeta, ok bool) {
	f := r.recent.Load()
	if f == nil {
		return m, false
	}
	i, ok := slices.BinarySearchFunc(f.list, sum, func(e recentFile, sum Checksum) int { return e.object.Compare(sum) })
	if ok {
		m = FileMeta{Meta: f.headers[f.list[i].header], Size: f.list[i].size}
	}
	return m, ok
}
