package ostree

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"slices"
	"sync"

	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// objectNames is what a directory that is laid out as objects/ has. A
// subdirectory is listed when the first object in it is asked for: an import
// asks for nearly all, and a list costs less than a few look-ups. What others
// add afterwards is not seen.
type objectNames struct {
	dir     *os.File
	archive bool
	subs    [256]struct {
		once  sync.Once
		names []object.Name // sorted
		err   error
	}
}

func (o *objectNames) has(n object.Name) (bool, error) {
	sub := &o.subs[n.Checksum[0]]
	sub.once.Do(func() { sub.names, sub.err = listObjects(o.dir, hexByte(n.Checksum[0]), o.archive) })
	_, ok := slices.BinarySearchFunc(sub.names, n, compareNames)
	return ok, sub.err
}

func listObjects(dir *os.File, sub string, archive bool) ([]object.Name, error) {
	d, err := openDirAt(dir, sub)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	files, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	names := make([]object.Name, 0, len(files))
	for _, file := range files {
		if n, ok := object.ParsePath(sub, file, archive); ok {
			names = append(names, n)
		}
	}
	slices.SortFunc(names, compareNames)
	return names, nil
}

func compareNames(a, b object.Name) int {
	if c := bytes.Compare(a.Checksum[:], b.Checksum[:]); c != 0 {
		return c
	}
	return int(a.Type) - int(b.Type)
}

const hexDigits = "0123456789abcdef"

// hexByte returns the name of the subdirectory of objects whose checksums begin
// with b.
func hexByte(b byte) string { return string([]byte{hexDigits[b>>4], hexDigits[b&15]}) }
