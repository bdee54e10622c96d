package boot

import (
	"fmt"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/kedge-os/kedge/pkg/boot/bls"
	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/boot/keyfile"
	"github.com/kedge-os/kedge/pkg/boot/retention"
	"github.com/kedge-os/kedge/pkg/fault"
)

// Deployment is a bootable root: a checkout with its own /etc, an origin and,
// unless it is staged, a boot entry.
type Deployment struct {
	Stateroot string
	Checksum  string // of the commit, hex
	Serial    int    // tells deployments of one commit apart
	Bootcsum  string // of the kernel, initramfs and device tree, hex
	// BootSerial tells deployments with one bootcsum apart; -1 until Write.
	BootSerial int
	// Index is the place in the list, 0 the default; a staged deployment
	// counts.
	Index int

	Origin *keyfile.File // what was asked for; never nil
	Entry  *bls.Entry    // of a staged deployment only options and extra keys

	Booted bool
	Staged bool
	// FinalizationLocked: libostree's own finaliser leaves the staged
	// deployment alone.
	FinalizationLocked bool
	// Ours: kedge staged it, and kedge's unit finalises it.
	Ours bool
	// Held: it is not finalised until SetHold(false).
	Held bool

	entryFile string       // its name in loader/entries, "" before the first Write
	counter   *bls.Counter // in the loader's own menu
	dev, ino  uint64
	merging   time.Time // before its first merge of /etc read anything
	policy    *Labeler  // of one that was just made: what its files are labelled by
}

// Name returns "CHECKSUM.SERIAL".
func (d *Deployment) Name() string { return fmt.Sprintf("%s.%d", d.Checksum, d.Serial) }

// Dir returns the deployment's directory beneath the sysroot.
func (d *Deployment) Dir() string { return path.Join(deployDir(d.Stateroot), d.Name()) }

// OriginPath returns the origin file beneath the sysroot.
func (d *Deployment) OriginPath() string { return d.Dir() + ".origin" }

// backing returns the directory for a transient root's overlay.
func (d *Deployment) backing() string {
	return path.Join("ostree/deploy", d.Stateroot, "backing", d.Name())
}

// bootName returns the directory of its kernel beneath /boot/ostree.
func (d *Deployment) bootName() string { return d.Stateroot + "-" + d.Bootcsum }

func deployDir(stateroot string) string { return path.Join("ostree/deploy", stateroot, "deploy") }

// Kargs returns the kernel arguments without ostree=, which Write sets.
func (d *Deployment) Kargs() karg.Args {
	options, _ := d.Entry.Get("options")
	return karg.Parse(options).Without("ostree")
}

// Counter returns how often a boot loader has tried the deployment and will
// still try it; nil where its entry is not counted.
func (d *Deployment) Counter() *bls.Counter {
	if d.counter != nil {
		return d.counter
	}
	return bls.CounterOf(d.entryFile)
}

// Title returns the boot menu's title, "" for a staged deployment.
func (d *Deployment) Title() string {
	t, _ := d.Entry.Get("title")
	return t
}

// transient is the origin's group for what is not part of what was asked for.
const transient = "libostree-transient"

// Pinned reports whether the deployment is kept until it is unpinned.
func (d *Deployment) Pinned() bool { return retention.IsPinned(d.Origin, transient) }

// same reports whether two values stand for one deployment on disk.
func (d *Deployment) same(o *Deployment) bool {
	return d != nil && o != nil && d.Stateroot == o.Stateroot && d.Checksum == o.Checksum && d.Serial == o.Serial
}

// bootlink is an ostree= argument taken apart:
// /ostree/boot.V/STATEROOT/BOOTCSUM/N.
type bootlink struct {
	version             int
	stateroot, bootcsum string
	serial              int
}

func (l bootlink) path() string {
	return fmt.Sprintf("ostree/boot.%d/%s/%s/%d", l.version, l.stateroot, l.bootcsum, l.serial)
}

var (
	bootlinkForm   = regexp.MustCompile(`^/ostree/boot\.([01])/([^/]+)/([^/]+)/([0-9]+)$`)
	deployNameForm = regexp.MustCompile(`^([0-9a-f]+)\.([0-9]+)$`)
	checksumForm   = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

func parseBootlink(s string) (bootlink, error) {
	m := bootlinkForm.FindStringSubmatch(s)
	if m == nil || m[2] == ".." || m[3] == ".." {
		return bootlink{}, fault.New(fault.Corrupt, "", "%q is not of the form ostree=/ostree/boot.V/STATEROOT/BOOTCSUM/N", "ostree="+s)
	}
	serial, err := strconv.Atoi(m[4])
	if err != nil {
		return bootlink{}, fault.New(fault.Corrupt, "", "ostree=%s: %w", s, err)
	}
	return bootlink{version: int(m[1][0] - '0'), stateroot: m[2], bootcsum: m[3], serial: serial}, nil
}

// parseDeployName takes "CHECKSUM.SERIAL" apart.
func parseDeployName(s string) (checksum string, serial int, ok bool) {
	m := deployNameForm.FindStringSubmatch(s)
	if m == nil {
		return "", 0, false
	}
	serial, err := strconv.Atoi(m[2])
	return m[1], serial, err == nil
}

// parseBootName takes the name of a directory in /boot/ostree apart.
func parseBootName(s string) (stateroot, bootcsum string, ok bool) {
	i := strings.LastIndexByte(s, '-')
	if i <= 0 || !checksumForm.MatchString(s[i+1:]) {
		return "", "", false
	}
	return s[:i], s[i+1:], true
}

// CheckStateroot refuses names that are not one path component.
func CheckStateroot(name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00\n ") {
		return fault.New(fault.Usage, "use letters, digits, dots, dashes and underscores", "stateroot name %q", name)
	}
	return nil
}
