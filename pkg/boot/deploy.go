package boot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/pkg/boot/bls"
	"github.com/kedge-os/kedge/pkg/boot/etcmerge"
	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/boot/keyfile"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/selinux"
)

// Labeler says which SELinux label a path is to have.
type Labeler = etcmerge.Labeler

// DeployRequest is what a new deployment is made from.
type DeployRequest struct {
	Stateroot string
	Commit    string        // checksum of a commit that is in the repository
	Origin    *keyfile.File // what was asked for
	// Merge is the deployment whose /etc and kernel arguments are continued;
	// nil for the first of a stateroot. See MergeFor.
	Merge *Deployment
	// Kargs are the machine's arguments; nil means those of Merge. What the
	// image brings itself (kargs.d) is set off against Merge's image and
	// applied to them, unless ExactKargs.
	Kargs      karg.Args
	ExactKargs bool
}

// Deploy makes a deployment that nothing points to yet: checkout, /etc, /var
// on a stateroot's first, origin. It becomes bootable by Write; until then it
// is garbage that Cleanup removes.
func (s *Sysroot) Deploy(ctx context.Context, r DeployRequest) (*Deployment, error) {
	if err := s.requireLock("deploy"); err != nil {
		return nil, err
	}
	d, _, err := s.deploy(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("deploy %.12s: %w", r.Commit, err)
	}
	return d, nil
}

// deploy also returns the kernel it found.
func (s *Sysroot) deploy(ctx context.Context, r DeployRequest) (*Deployment, *Kernel, error) {
	if err := s.requireStateroot(r.Stateroot); err != nil {
		return nil, nil, err
	}
	if !checksumForm.MatchString(r.Commit) {
		return nil, nil, fault.New(fault.Usage, "", "%q is not a commit checksum", r.Commit)
	}
	if r.Merge != nil && r.Merge.Staged {
		return nil, nil, fault.New(fault.Internal, "", "a staged deployment has no settled /etc to continue")
	}
	serial, err := s.nextSerial(r.Stateroot, r.Commit)
	if err != nil {
		return nil, nil, err
	}
	d := &Deployment{
		Stateroot: r.Stateroot, Checksum: r.Commit, Serial: serial, BootSerial: -1,
		Origin: r.Origin.Clone(), Entry: &bls.Entry{},
	}
	k, err := s.makeDeployment(ctx, d, r)
	if err != nil {
		if rerr := s.removeDeployment(d); rerr != nil {
			s.log.Warn("a deployment that failed is left for the next cleanup", "deployment", d.Name(), "error", rerr)
		}
		return nil, nil, err
	}
	return d, k, nil
}

func (s *Sysroot) makeDeployment(ctx context.Context, d *Deployment, r DeployRequest) (*Kernel, error) {
	root, err := s.checkout(ctx, d)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	k, err := FindKernel(root)
	if err != nil {
		return nil, err
	}
	d.Bootcsum = k.Bootcsum
	d.merging = s.opts.Clock().Add(-clockStep)
	if err := s.setKargs(d, root, r); err != nil {
		return nil, err
	}
	if err := s.fillDeployment(ctx, d, root, r.Merge); err != nil {
		return nil, err
	}
	st, err := statOf(root, ".")
	if err != nil {
		return nil, err
	}
	d.dev, d.ino = st.Dev, st.Ino
	return k, nil
}

// clockStep is more than the kernel's clock for inode times lags behind.
const clockStep = 10 * time.Millisecond

// nextSerial returns the number after the highest that the commit has in the
// stateroot.
func (s *Sysroot) nextSerial(stateroot, commit string) (int, error) {
	names, err := dirfd.ReadNames(s.root, deployDir(stateroot))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	next := 0
	for _, n := range names {
		if sum, serial, ok := parseDeployName(n); ok && sum == commit {
			next = max(next, serial+1)
		}
	}
	return next, err
}

func (s *Sysroot) checkout(ctx context.Context, d *Deployment) (*os.Root, error) {
	if err := s.root.MkdirAll(deployDir(d.Stateroot), 0o755); err != nil {
		return nil, err
	}
	parent, err := s.root.OpenRoot(deployDir(d.Stateroot))
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	if err := s.opts.Repo.Checkout(ctx, d.Checksum, parent, d.Name()); err != nil {
		return nil, fmt.Errorf("check out the tree: %w", err)
	}
	return parent.OpenRoot(d.Name())
}

// setKargs computes the machine's arguments for the new image.
func (s *Sysroot) setKargs(d *Deployment, root *os.Root, r DeployRequest) error {
	args := r.Kargs
	if args == nil && r.Merge != nil {
		// With ostree=: Write sets it anew where it stands.
		options, _ := r.Merge.Entry.Get("options")
		args = karg.Parse(options)
	}
	if !r.ExactKargs {
		fresh, err := karg.LoadDir(root.FS(), s.arch())
		if err != nil {
			return err
		}
		var old karg.Args
		if r.Merge != nil {
			if old, err = s.ImageKargs(r.Merge); err != nil {
				return fmt.Errorf("of the deployment that is replaced: %w", err)
			}
		}
		args = args.Rebase(old, fresh)
	}
	d.Entry.Set("options", args.String())
	if r.Merge != nil {
		for _, key := range r.Merge.Entry.Extra() {
			if extraKey(key) {
				v, _ := r.Merge.Entry.Get(key)
				d.Entry.Set(key, v)
			}
		}
	}
	return nil
}

// extraKey reports whether an entry's key belongs to the machine and goes on
// to the next deployment, and not to the deployment's own files.
func extraKey(key string) bool {
	switch key {
	case "fdtdir", "aboot", "abootcfg", "initrd":
		return false
	}
	return true
}

func (s *Sysroot) arch() string {
	if s.opts.Arch != "" {
		return s.opts.Arch
	}
	return karg.Arch()
}

// ImageKargs returns the arguments that a deployment's image brings itself.
func (s *Sysroot) ImageKargs(d *Deployment) (karg.Args, error) {
	root, err := s.root.OpenRoot(d.Dir())
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return karg.LoadDir(root.FS(), s.arch())
}

// labels returns the labeler of a deployment's own policy, nil without one; root
// is the deployment's. Loading it takes 30 ms, so one that was just made has it.
func (d *Deployment) labels(root *os.Root) (Labeler, error) {
	if d.policy != nil {
		return *d.policy, nil
	}
	return labels(root)
}

// labels returns the labeler of the policy that a root has now, nil without one.
func labels(root *os.Root) (Labeler, error) {
	p, err := selinux.Load(root)
	if p == nil || err != nil {
		return nil, err
	}
	return p, nil
}

// fillDeployment makes everything of a deployment that is not the checkout.
func (s *Sysroot) fillDeployment(ctx context.Context, d *Deployment, root *os.Root, merge *Deployment) error {
	if err := settleEtc(root); err != nil {
		return fmt.Errorf("prepare /etc: %w", err)
	}
	lab, err := labels(root)
	if err != nil {
		return err
	}
	changes, _, err := s.mergeEtc(ctx, root, merge, etcmerge.WriteOptions{Labels: lab})
	if err != nil {
		return err
	}
	if err := s.refreshPolicy(ctx, root, changes); err != nil {
		return err
	}
	if err := root.Remove("etc/.updated"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := s.seedVar(ctx, d, root); err != nil {
		return fmt.Errorf("fill /var: %w", err)
	}
	// What was merged may be of the policy.
	if slices.ContainsFunc(changes, func(c etcmerge.Change) bool { return strings.HasPrefix(c.Path+"/", "selinux/") }) {
		if lab, err = labels(root); err != nil {
			return err
		}
	}
	d.policy = &lab
	if err := s.labelVar(d, lab); err != nil {
		return fmt.Errorf("label /var: %w", err)
	}
	if err := s.makeBacking(d, root, lab); err != nil {
		return fmt.Errorf("make the backing directory: %w", err)
	}
	if err := s.writeOrigin(d, lab); err != nil {
		return err
	}
	return s.setImmutable(d, true)
}

// makeBacking makes the directories that a transient root's overlay needs. The
// upper one becomes the root, so it has the root's mode and label.
func (s *Sysroot) makeBacking(d *Deployment, root *os.Root, lab Labeler) error {
	top := path.Join(d.backing(), "root-transient")
	for _, dir := range []string{path.Join("ostree/deploy", d.Stateroot, "backing"), d.backing(), top, path.Join(top, "work"), path.Join(top, "upper")} {
		if err := s.root.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	st, err := statOf(root, ".")
	if err != nil {
		return err
	}
	dir, err := dirfd.Open(s.root, top)
	if err != nil {
		return err
	}
	defer dir.Close()
	if lab != nil {
		if err := setLabel(dir, "upper", "/", lab, unix.S_IFDIR|st.Mode&0o7777); err != nil {
			return err
		}
	}
	return dir.SetMeta("upper", 0, 0, st.Mode, keepLabel(dir, "upper"))
}

func keepLabel(dir *dirfd.Dir, name string) []dirfd.Xattr {
	list, err := dir.Xattrs(name)
	if err != nil {
		return nil
	}
	return list
}

// setImmutable seals or opens the root directory of a deployment: nobody makes
// a new top-level directory by mistake that is gone with the next deployment.
func (s *Sysroot) setImmutable(d *Deployment, on bool) error {
	dir, err := dirfd.Open(s.root, d.Dir())
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.SetImmutable(on)
}
