package layering

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/pkgdb"
)

func (*apt) query(_ context.Context, b *box) ([]Package, error) {
	root, err := os.OpenRoot(b.root)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	for _, dir := range []string{dpkgUsr, dpkgVar} {
		f, err := root.Open(dir + "/status")
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return readDpkgStatus(f)
	}
	return nil, nil
}

// readDpkgStatus reads dpkg's status file: the packages that are there, whether
// configured (else the state stands behind the version).
func readDpkgStatus(r io.Reader) ([]Package, error) {
	read, err := pkgdb.ReadStatus(r)
	if err != nil {
		return nil, fault.New(fault.Corrupt, "", "read dpkg's status file: %w", err)
	}
	var list []Package
	for _, p := range read {
		if p.State != "" { // no version that a lock could have
			p.Version += " (" + p.State + ")"
		}
		list = append(list, Package{Name: p.Name, Version: p.Version, Arch: p.Arch})
	}
	sortPackages(list)
	return list, nil
}
