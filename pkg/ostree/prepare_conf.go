package ostree

import (
	"bufio"
	"bytes"
	"io/fs"
	"strings"

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
		path := dir + "/ostree/prepare-root.conf"
		n := base.Resolve(path)
		if n == nil {
			continue
		}
		data, err := readInode(path, n, open)
		if err != nil {
			return false, err
		}
		return overlayInConfig(data), nil
	}
	return false, nil
}

// overlayInConfig parses prepare-root.conf (ostree-prepare-root(1)); a value
// that means nothing counts as unset.
func overlayInConfig(data []byte) bool {
	var group string
	var transient, composefs bool
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if strings.HasPrefix(line, "[") && strings.HasSuffix(line, "]") {
			group = line[1 : len(line)-1]
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		switch value = strings.TrimSpace(value); group + "." + strings.TrimSpace(key) {
		case "root.transient":
			transient = value == "true" || value == "1"
		case "composefs.enabled":
			switch value {
			case "yes", "true", "1", "maybe", "signed", "verity":
				composefs = true
			default:
				composefs = false
			}
		}
	}
	return transient || composefs
}
