package ostree

import (
	"io/fs"

	"github.com/kedge-os/kedge/internal/prepareroot"
	"github.com/kedge-os/kedge/pkg/fstree"
)

var errNotExist = fs.ErrNotExist

// overlayRoot reports whether the root of the base commit will be an overlay
// (composefs or root.transient), so that top-level paths need no place in the
// real root. ostree-ext reads the first of etc and usr/lib that exists.
func overlayRoot(base *fstree.Tree, open OpenFunc) (bool, error) {
	dirs := []string{"etc", "usr/lib"}
	if base.Lookup("usr/etc") == nil {
		// An /etc here is the commit's /usr/etc, which ostree-ext does not read.
		dirs = dirs[1:]
	}
	for _, dir := range dirs {
		path := dir + "/" + prepareroot.File
		n := base.Resolve(path)
		if n == nil {
			continue
		}
		data, err := readInode(path, n, open)
		if err != nil {
			return false, err
		}
		conf, err := prepareroot.Parse(string(data))
		return conf.Overlay(), err
	}
	return false, nil
}
