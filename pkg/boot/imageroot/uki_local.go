package imageroot

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"strings"

	"github.com/kedge-os/kedge/internal/atomicfile"
	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/boot/source"
	"github.com/kedge-os/kedge/pkg/boot/uki"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
)

// A unified kernel image that was made and signed on this machine stands in
// localDir/SUM: of one image there may be several, one for each set of kernel
// arguments, and the name of the file has to be the one by which bootc, too, finds
// the image. SUM is what its bytes come to, so no file there is ever written over,
// and what is damaged shows. The sysroot keeps a copy in localCopies, durable
// before anything names it: a key that was changed or is gone stops no rollback.
const (
	localDir    = espKernels + "/kedge"
	localCopies = stateDir + "/uki-made"
)

// sumSize is how many letters of a sha256 a name has: paths on a FAT file system
// may not be long.
const sumSize = 32

var sumForm = regexp.MustCompile(fmt.Sprintf(`^[0-9a-f]{%d}$`, sumSize))

// localSum returns the SUM in the path of a unified kernel image that was made here,
// beneath the boot directory; "" for others.
func localSum(name string) string {
	dir := path.Dir(name)
	if path.Dir(dir) != localDir || !sumForm.MatchString(path.Base(dir)) {
		return ""
	}
	return path.Base(dir)
}

// localUKI returns the sum of a deployment's unified kernel image, if that was made
// here.
func (d *Deployment) localUKI() string {
	name, _ := ukiOf(d.Entry)
	return localSum(name)
}

// MadeHere reports whether a deployment boots a unified kernel image that was made
// and signed on this machine.
func (d *Deployment) MadeHere() bool { return d.localUKI() != "" }

// kernelKey names a kernel in the boot directory as long as something boots it: its
// directory, or a unified kernel image.
func kernelKey(name string) string {
	if sum := localSum(name); sum != "" {
		return sum
	}
	return path.Base(name)
}

// ownSum reports whether a name is one that localDir has.
func ownSum(name string) bool { return sumForm.MatchString(name) }

func copyOf(sum string) string { return path.Join(localCopies, sum+uki.Suffix) }

// findLocal returns a unified kernel image that was made here.
func (i *images) findLocal(sum string) (*kernel, error) {
	k, err := unifiedKernel(func() (UKIFile, error) { return i.root.Open(copyOf(sum)) })
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "kedge kargs with a change makes another one", "the unified kernel image %s, made on this host, is not here", sum)
	}
	if err == nil {
		k.local = sum
	}
	return k, err
}

// kargsOf returns what the image of a deployment brings as kernel arguments.
func (s *Sysroot) kargsOf(images *images, d *Deployment) (karg.Args, error) {
	if d.Type == TypeUKI && d.localUKI() == "" {
		return d.Kargs(), nil
	}
	args, err := s.imageKargs(images, d.Digest)
	if err != nil || d.Type != TypeUKI {
		return args, err
	}
	k, err := images.findUKI(d.Digest)
	if err != nil {
		return nil, err
	}
	return k.cmdline.Without(kargName).Without(kargLongName).AppendMissing(args...), nil
}

// local gives a deployment a unified kernel image of its own, with the arguments
// that are wanted: the one of a deployment that has them, or a new one, of that of
// the image, which boots named.
func (s *Sysroot) local(d *Deployment, named string, wanted karg.Args, differs string, images *images, r DeployRequest) (*kernel, error) {
	d.cmdline = append(karg.Args{imageKarg(d.Digest, d.VerityOptional)}, wanted...)
	if old := s.first(func(o *Deployment) bool {
		return o.localUKI() != "" && o.sameState(d) && o.cmdline.String() == d.cmdline.String()
	}); old != nil {
		if k, err := images.findLocal(old.localUKI()); err == nil {
			return k, nil
		}
	}
	var signer uki.Signer
	var err error
	if r.Sign != nil {
		signer, err = r.Sign()
	}
	if err != nil {
		return nil, err
	}
	if signer == nil {
		return nil, unsigned(differs)
	}
	parts, done, err := images.changedKernel(d.Digest, named)
	if err != nil {
		return nil, err
	}
	defer done()
	parts.Cmdline = d.cmdline
	base, err := images.openUKI(d.Digest)
	if err != nil {
		return nil, err
	}
	defer base.Close()
	sum, err := s.make(base, parts, signer)
	if err != nil {
		return nil, fmt.Errorf("make a unified kernel image: %w", err)
	}
	return images.findLocal(sum)
}

const keyHint = "or give kedge a key and a certificate to sign another one with (key and certificate in /etc/kedge/uki.toml, docs/composefs.md)"

// ErrSealed is what a change of the files of an image is answered with that would
// need another unified kernel image, and nothing to sign it with.
var ErrSealed = fault.New(fault.Conflict, "build what is wanted into the image, "+keyHint,
	"the image boots a unified kernel image, which is signed for the files that the image has: packages and another initramfs cannot come in")

// unsigned is what a change is answered with that would need another unified kernel
// image, and nothing to sign it with.
func unsigned(differs string) error {
	if differs == "" {
		return ErrSealed
	}
	return fault.New(fault.Conflict, "have the image built with a unified kernel image that has the kernel arguments wanted; arguments of this machine alone go with kedge kargs --delete before the switch; "+keyHint,
		"the kernel arguments are part of the signed unified kernel image, which %s", differs)
}

// make writes a unified kernel image to its place in localCopies, durable, and
// returns its sum.
func (s *Sysroot) make(base UKIFile, parts uki.Parts, signer uki.Signer) (sum string, err error) {
	st, err := base.Stat()
	if err != nil {
		return "", err
	}
	if err := s.root.MkdirAll(localCopies, 0o755); err != nil {
		return "", err
	}
	tmp := path.Join(localCopies, kernelTmp)
	f, err := s.root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	dropped, err := uki.Make(io.MultiWriter(f, h), base, st.Size(), parts, signer)
	if err == nil && !s.opts.NoSync {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(err, s.root.Remove(tmp))
	}
	s.droppedPCRs = dropped
	sum = hex.EncodeToString(h.Sum(nil))[:sumSize]
	if err := s.root.Rename(tmp, copyOf(sum)); err != nil || s.opts.NoSync {
		return sum, err
	}
	return sum, atomicfile.SyncDir(s.root, localCopies)
}

// DroppedPCRs reports whether the unified kernel image that this process made last
// lacks the signatures of PCR values that its image's had.
func (s *Sysroot) DroppedPCRs() bool { return s.droppedPCRs }

// changedKernel returns kernel and initramfs of an image where they are not those of
// the image that its unified kernel image was built for.
func (i *images) changedKernel(digest, named string) (parts uki.Parts, done func(), err error) {
	var open []io.Closer
	done = func() {
		for _, c := range open {
			_ = c.Close()
		}
	}
	if digest == named {
		return parts, done, nil
	}
	defer func() {
		if err != nil {
			done()
		}
	}()
	image, err := i.get(digest)
	if err != nil {
		return parts, done, err
	}
	before, err := i.get(named)
	if err != nil {
		return parts, done, err
	}
	for name, to := range map[string]**io.SectionReader{vmlinuz: &parts.Linux, "initramfs.img": &parts.Initrd} {
		_, old := inModules(before, name)
		version, n := inModules(image, name)
		if n == nil || old != nil && old.Content == n.Content && old.Size == n.Size {
			continue
		}
		f, err := image.OpenInode(n)
		if err != nil {
			return parts, done, err
		}
		open = append(open, f)
		if *to, err = section(f, n.Size); err != nil {
			return parts, done, err
		}
		if name == vmlinuz {
			parts.Version = version
		}
	}
	return parts, done, nil
}

// inModules finds a file in the directory of the modules of an image's kernel.
func inModules(image *source.Image, name string) (version string, n *fstree.Inode) {
	dir := image.Lookup(modulesDir)
	if dir == nil || !dir.IsDir() {
		return "", nil
	}
	for _, e := range dir.Entries() {
		if n := image.Lookup(path.Join(modulesDir, e.Name, name)); n != nil && n.IsRegular() {
			return e.Name, n
		}
	}
	return "", nil
}

// section gives a file of an image places that it can be read at: an object has
// them, and what is kept without one is small.
func section(f io.Reader, size int64) (*io.SectionReader, error) {
	if at, ok := f.(io.ReaderAt); ok {
		return io.NewSectionReader(at, 0, size), nil
	}
	data, err := io.ReadAll(io.LimitReader(f, maxEntry))
	if err == nil && int64(len(data)) != size {
		err = fault.New(fault.Corrupt, "kedge fsck finds damaged objects", "%d of %d bytes could be read", len(data), size)
	}
	return io.NewSectionReader(bytes.NewReader(data), 0, size), err
}

// checkLocal compares a unified kernel image that was made here with its sum.
func (s *Sysroot) checkLocal(d *Deployment) error {
	name, _ := kernelOf(d.Entry)
	f, err := s.boot.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	if !strings.HasPrefix(hex.EncodeToString(h.Sum(nil)), d.localUKI()) {
		return fault.New(fault.Corrupt, "", "%s is not what was made on this host", name)
	}
	return nil
}

// cleanCopies removes the copies of unified kernel images that no entry boots.
func (s *Sysroot) cleanCopies() error {
	names, err := dirfd.ReadNames(s.root, localCopies)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, n := range names {
		if s.mentioned[strings.TrimSuffix(n, uki.Suffix)] {
			continue
		}
		if err := s.root.Remove(path.Join(localCopies, n)); err != nil {
			return err
		}
	}
	return nil
}

// ukiPath is where the unified kernel image of a new deployment goes, beneath the
// boot directory.
func ukiPath(d *Deployment, k *kernel) string {
	dir := ukiDir
	if k.local != "" {
		dir = path.Join(localDir, k.local)
	}
	return path.Join(dir, kernelPrefix+d.Digest+uki.Suffix)
}

// isUKI reports whether a path beneath the boot directory is one that kedge or bootc
// gives to unified kernel images.
func isUKI(name string) bool {
	return (path.Dir(name) == ukiDir || localSum(name) != "") && isKernelName(path.Base(name))
}
