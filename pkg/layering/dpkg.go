package layering

import (
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/kedge-os/kedge/pkg/fault"
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
// configured (else the state stands behind the version), without those of which only configuration files are left.
func readDpkgStatus(r io.Reader) ([]Package, error) {
	var list []Package
	var p Package
	state := "" // the last word of Status
	flush := func() {
		switch state {
		case "", "not-installed", "config-files":
		case "installed":
			list = append(list, p)
		default: // no version that a lock could have
			p.Version += " (" + state + ")"
			list = append(list, p)
		}
		p, state = Package{}, ""
	}
	in := bufio.NewScanner(r)
	in.Buffer(make([]byte, 64<<10), 16<<20)
	for in.Scan() {
		key, value, _ := strings.Cut(in.Text(), ": ")
		switch key {
		case "":
			flush()
		case "Package":
			p.Name = value
		case "Version":
			p.Version = value
		case "Architecture":
			p.Arch = value
		case "Status":
			state = value[strings.LastIndexByte(value, ' ')+1:]
		}
	}
	flush()
	if err := in.Err(); err != nil {
		return nil, fault.New(fault.Corrupt, "", "read dpkg's status file: %w", err)
	}
	sortPackages(list)
	return list, nil
}
