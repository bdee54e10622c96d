package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/internal/atomicfile"
	"github.com/kedge-os/kedge/pkg/boot/units"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/selinux"
)

// SelfProgram is where SelfInstall puts the program: in /var, which every
// deployment of the stateroot shares and no image owns. The units go to /etc,
// where they are local changes that each new deployment's merge carries over.
// Both survive switch, upgrade and rollback.
const SelfProgram = "/var/lib/kedge/bin/kedge"

const unitDir = "etc/systemd/system"

// SelfInstall puts the running program and its units on a host whose image has
// no kedge, and returns the paths. On a sysroot that is not booted it goes to
// the default deployment. The last step enables the units.
func (h *Host) SelfInstall(ctx context.Context, version string) ([]string, error) {
	paths, err := h.selfInstall(ctx, version)
	return paths, wrap("self install", err)
}

func (h *Host) selfInstall(ctx context.Context, version string) ([]string, error) {
	list, unlock, err := h.lockList(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	d := list.current()
	if d == nil {
		return nil, h.nothingDeployed()
	}
	root, vardir, err := h.openDeployment(d)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	defer vardir.Close()
	if ok, _ := h.store.Exists(d.root, "usr/bin/kedge"); ok {
		return nil, fault.New(fault.Conflict, "nothing has to be done: the image's own kedge and units are used", "the image of %s has kedge", d.id)
	}
	label, err := programLabel(root)
	if err != nil {
		return nil, err
	}
	if err := installProgram(vardir, label); err != nil {
		return nil, err
	}
	paths := []string{SelfProgram}
	for _, name := range units.Names {
		text, err := units.Text(name, SelfProgram)
		if err != nil {
			return nil, err
		}
		if err := root.MkdirAll(unitDir, 0o755); err != nil {
			return nil, err
		}
		if err := atomicfile.Write(root, path.Join(unitDir, name), []byte(text), 0o644); err != nil {
			return nil, err
		}
		paths = append(paths, "/"+path.Join(unitDir, name))
	}
	for _, name := range units.Enabled {
		link := path.Join(unitDir, name)
		if err := root.MkdirAll(path.Dir(link), 0o755); err != nil {
			return nil, err
		}
		if err := root.Symlink("../"+path.Base(name), link); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("enable %s: %w", name, err)
		}
		paths = append(paths, "/"+link)
	}
	h.record(v1.HistoryEntry{Verb: "self install", Result: "done", ID: d.id, Image: d.origin.text, Version: version})
	return paths, nil
}

// openDeployment opens the root and the /var of a deployment: those of the
// machine where it is booted, the root being writable in /etc there.
func (h *Host) openDeployment(d *deployment) (root, vardir *os.Root, err error) {
	if !d.booted {
		return h.store.OpenDeployment(d)
	}
	if root, err = os.OpenRoot(h.cfg.Machine); err != nil {
		return nil, nil, err
	}
	if vardir, err = os.OpenRoot(filepath.Join(h.cfg.Machine, "var")); err != nil {
		_ = root.Close()
	}
	return root, vardir, err
}

// programLabel returns the label that programs have in a root, so that systemd
// may run one from /var; "" where the root has no policy.
func programLabel(root *os.Root) (string, error) {
	policy, err := selinux.Load(root)
	if err != nil || policy == nil {
		return "", err
	}
	label, _ := policy.Label("/usr/bin/kedge", unix.S_IFREG|0o755)
	return label, nil
}

// installProgram copies the running program into /var; a rename puts it in
// place, so that a running older one goes on.
func installProgram(vardir *os.Root, label string) error {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer self.Close()
	const dir, name, tmp = "lib/kedge/bin", "lib/kedge/bin/kedge", "lib/kedge/bin/.kedge.tmp"
	if err := vardir.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := vardir.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	defer vardir.Remove(tmp) // gone after the rename
	_, err = io.Copy(f, self)
	if err == nil && label != "" {
		err = unix.Fsetxattr(int(f.Fd()), "security.selinux", append([]byte(label), 0), 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("copy this program to %s: %w", SelfProgram, err)
	}
	if err := vardir.Rename(tmp, name); err != nil {
		return err
	}
	return atomicfile.SyncDir(vardir, dir)
}

// selfInstalled reports whether SelfInstall was run on a deployment.
func (h *Host) selfInstalled(d *deployment) bool {
	root, vardir, err := h.openDeployment(d)
	if err != nil {
		return false
	}
	defer root.Close()
	defer vardir.Close()
	_, unit := root.Stat(path.Join(unitDir, units.Finalize))
	_, program := vardir.Stat("lib/kedge/bin/kedge")
	return unit == nil && program == nil
}
