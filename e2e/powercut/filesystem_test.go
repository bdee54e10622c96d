package powercut

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
)

// filesystem is a kind of file system that a host may be on.
type filesystem struct {
	kind       string
	mkfs       string // options
	replayed   string // mount options with which the journal is replayed
	unreplayed string // and with which it is not
	check      []string
	// newID gives a copy of a disk an identity of its own; nil where copies can be
	// mounted side by side.
	newID func(image string) error
}

// filesystems are ext4, and in nightly runs xfs and btrfs. Lazy work of mkfs would
// be logged as the host's.
func filesystems() []filesystem {
	ext4 := filesystem{
		kind: "ext4", mkfs: "-E lazy_itable_init=0,lazy_journal_init=0 -N 16384",
		replayed: "rw", unreplayed: "ro,noload", check: []string{"e2fsck", "-fn"},
	}
	if os.Getenv("KEDGE_NIGHTLY") == "" {
		return []filesystem{ext4}
	}
	return []filesystem{
		ext4,
		{kind: "xfs", replayed: "rw,nouuid", unreplayed: "ro,norecovery,nouuid", check: []string{"xfs_repair", "-n"}},
		{
			kind: "btrfs", replayed: "rw", unreplayed: "ro,rescue=nologreplay", check: []string{"btrfs", "check", "--readonly"},
			newID: newBtrfsID,
		},
	}
}

// newDisk makes a disk of the kind.
func (fs filesystem) newDisk(ctx context.Context, path string) (*lab.Disk, error) {
	return lab.NewDisk(ctx, path, strings.TrimSpace(fs.kind+" "+fs.mkfs), "root", diskSize)
}

// copy makes a disk that can be mounted beside its original.
func (fs filesystem) copy(t *testing.T, from, to string) {
	t.Helper()
	copyDisk(t, from, to)
	if err := fs.identify(to); err != nil {
		t.Fatal(err)
	}
}

// identify gives an image that is a copy an identity of its own, where its kind
// needs that.
func (fs filesystem) identify(image string) error {
	if fs.newID == nil {
		return nil
	}
	return fs.newID(image)
}

// checkDisk has the file system's own program look for what is wrong.
func (fs filesystem) checkDisk(ctx context.Context, image string) error {
	_, err := lab.Command(ctx, fs.check[0], append(fs.check[1:], image)...)
	return err
}
