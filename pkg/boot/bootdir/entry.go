package bootdir

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/kedge-os/kedge/pkg/boot/bls"
	"github.com/kedge-os/kedge/pkg/fault"
)

// CheckEntry looks for the files that a boot entry names: kernel, initramfs and
// device tree. One that is missing or empty is a Corrupt error: nothing boots from the
// entry.
func CheckEntry(boot *os.Root, e *bls.Entry) error {
	names := e.Initrds()
	for _, key := range []string{"linux", "devicetree"} {
		if v, ok := e.Get(key); ok {
			names = append(names, v)
		}
	}
	for _, name := range names {
		st, err := boot.Stat(Beneath(name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return fault.New(fault.Corrupt, "", "its boot entry names %s, which is not there", name)
		case err != nil:
			return err
		case !st.Mode().IsRegular() || st.Size() == 0:
			return fault.New(fault.Corrupt, "", "its boot entry names %s, which is empty or no file", name)
		}
	}
	return nil
}

// Beneath turns a path of a boot entry into one beneath the boot directory.
func Beneath(name string) string {
	name = strings.TrimPrefix(path.Clean("/"+name), "/boot/")
	return strings.TrimPrefix(name, "/")
}
