package imageroot

import (
	"fmt"
	"path"
	"regexp"
	"strings"
	"time"

	"github.com/kedge-os/kedge/pkg/boot/bls"
	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/boot/keyfile"
	"github.com/kedge-os/kedge/pkg/boot/retention"
)

// BootType is how a deployment is booted, as its origin spells it.
type BootType string

// The boot types.
const (
	TypeBLS BootType = "bls" // kernel and initrd
	TypeUKI BootType = "uki" // a unified kernel image
)

// Deployment is a bootable root: an image with a state directory and, unless
// it is staged, a boot entry.
type Deployment struct {
	Digest string // fs-verity digest of the image, hex
	// Serial tells entries with one digest apart: 0 is the one that is furthest
	// from the default.
	Serial int
	// Index is the place in the list, 0 the default; a staged deployment counts.
	Index int

	Origin *keyfile.File // what was asked for; never nil
	Entry  *bls.Entry    // never nil
	Type   BootType

	// VerityOptional: it boots also where the file system has no fs-verity.
	VerityOptional bool
	// SharesState: another entry has the same image, and so the same /etc,
	// origin and pin.
	SharesState bool

	Booted bool
	Staged bool
	// FinalizationLocked: bootc's own finaliser leaves the staged deployment
	// alone.
	FinalizationLocked bool
	// Ours: kedge staged it, and kedge's unit finalises it.
	Ours bool
	// Held: it is not finalised until SetHold(false).
	Held bool

	cmdline   karg.Args    // of its unified kernel image
	entryFile string       // its name in loader/entries, "" before the first Write
	counter   *bls.Counter // in a menu that is made from the entries
	again     bool         // it was made the default: used up tries begin anew
	good      bool         // Bless found it good
	// pending: its /etc and origin wait in kedge's own directory, since its state
	// directory is in use by an entry of the list.
	pending bool
	merging time.Time // before its first merge of /etc read anything
}

var digestForm = regexp.MustCompile(`^[0-9a-f]{64}([0-9a-f]{64})?$`)

// Name returns the digest, with ".SERIAL" behind it where that is not 0.
func (d *Deployment) Name() string {
	if d.Serial == 0 {
		return d.Digest
	}
	return fmt.Sprintf("%s.%d", d.Digest, d.Serial)
}

// Dir returns the state directory beneath the sysroot; etc is in it.
func (d *Deployment) Dir() string { return path.Join(deployDir, d.Digest) }

// OriginPath returns the origin file beneath the sysroot.
func (d *Deployment) OriginPath() string { return path.Join(d.Dir(), d.Digest+".origin") }

// pendingDir is where /etc and origin wait for a state directory in use.
func (d *Deployment) pendingDir() string { return path.Join(stateDir, "pending", d.Digest) }

// etcDir is where the deployment's /etc is until it is committed.
func (d *Deployment) etcDir() string {
	if d.pending {
		return path.Join(d.pendingDir(), "etc")
	}
	return path.Join(d.Dir(), "etc")
}

// stagedOrigin is where the deployment's origin is until it is committed.
func (d *Deployment) stagedOrigin() string {
	if d.pending {
		return path.Join(d.pendingDir(), d.Digest+".origin")
	}
	return d.OriginPath()
}

// Groups and keys of an origin. The last is ours; bootc carries groups along
// that it does not know.
const (
	bootGroup      = "boot"
	bootTypeKey    = "boot_type"
	bootDigestKey  = "digest"
	imageGroup     = "image"
	manifestKey    = "manifest_digest"
	kedgeGroup     = "kedge"
	pinnedKey      = retention.PinnedKey
	kargName       = "composefs"
	kargLongName   = "composefs.digest"
	verityOptional = "?"
)

// BootDigest returns the sha256 of kernel and initrd one after the other, hex;
// "" where the origin does not tell.
func (d *Deployment) BootDigest() string {
	v, _ := d.Origin.Get(bootGroup, bootDigestKey)
	return v
}

// ManifestDigest returns the digest of the OCI manifest that the image was made
// from, "sha256:…"; "" where the origin does not tell.
func (d *Deployment) ManifestDigest() string {
	v, _ := d.Origin.Get(imageGroup, manifestKey)
	return v
}

// Pinned reports whether the deployment is kept until it is unpinned.
func (d *Deployment) Pinned() bool { return retention.IsPinned(d.Origin, kedgeGroup) }

// Kargs returns the kernel arguments without the one that names the image,
// which Write sets. Those of a unified kernel image cannot be changed.
func (d *Deployment) Kargs() karg.Args {
	return d.options().Without(kargName).Without(kargLongName)
}

// options are the kernel arguments with the one that names the image.
func (d *Deployment) options() karg.Args {
	if d.Type == TypeUKI {
		return d.cmdline
	}
	options, _ := d.Entry.Get("options")
	return karg.Parse(options)
}

// KernelFile is what the boot entry names to be started.
func (d *Deployment) KernelFile() string {
	if name, ok := ukiOf(d.Entry); ok {
		return name
	}
	return d.Entry.Value("linux")
}

// Counter returns how often a boot loader has tried the deployment and will
// still try it; nil where its entry is not counted.
func (d *Deployment) Counter() *bls.Counter {
	if d.counter != nil {
		return d.counter
	}
	return bls.CounterOf(d.entryFile)
}

// Title returns the boot menu's title.
func (d *Deployment) Title() string {
	t, _ := d.Entry.Get("title")
	return t
}

// same reports whether two values stand for one entry.
func (d *Deployment) same(o *Deployment) bool {
	if !d.sameState(o) || d.Type != o.Type {
		return false
	}
	if d.Type == TypeUKI {
		// Of an image's own there is one for each image.
		return d.localUKI() == o.localUKI()
	}
	return d.VerityOptional == o.VerityOptional && d.Kargs().String() == o.Kargs().String()
}

// sameState reports whether two deployments have one state directory.
func (d *Deployment) sameState(o *Deployment) bool {
	return d != nil && o != nil && d.Digest == o.Digest
}

// imageKarg returns the argument that names an image, as bootc writes it.
func imageKarg(digest string, optional bool) string {
	if optional {
		return kargName + "=" + verityOptional + digest
	}
	return kargName + "=" + digest
}

// ImageOf finds the image that kernel arguments name: composefs=[?]DIGEST, or
// composefs.digest=[?]FORM:DIGEST, which the initramfs prefers; of several the
// first counts.
func ImageOf(args karg.Args) (digest string, optional, ok bool) {
	values := args.Values(kargName)
	if long := args.Values(kargLongName); len(long) > 0 {
		values = long
	}
	if len(values) == 0 {
		return "", false, false
	}
	v, optional := strings.CutPrefix(values[0], verityOptional)
	v = v[strings.LastIndexByte(v, ':')+1:]
	return v, optional, digestForm.MatchString(v)
}
