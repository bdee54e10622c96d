package composefs

import (
	"strings"

	"golang.org/x/sys/unix"
)

// The parts of EROFS (kernel fs/erofs/erofs_fs.h) and of the composefs header
// that images use. All integers are little-endian.
const (
	blockSize = 4096
	slotSize  = 32 // inodes start at multiples of it; nid = offset / slotSize

	headerMagic   = 0xd078629a
	headerVersion = 1
	headerACL     = 1 << 0 // flag: some inode has a posix ACL

	superOffset   = 1024
	superSize     = 128
	superMagic    = 0xe0f5e1e2
	compatMtime   = 1 << 1
	compatFilter  = 1 << 2
	inodesOffset  = superOffset + superSize
	compactSize   = 32
	extendedSize  = 64
	direntSize    = 12
	xattrHeader   = 12
	xattrEntry    = 4
	maxSharedRefs = 128
	filterSeed    = 0x25bbe08f

	layoutPlain  = 0 // all data in blocks
	layoutInline = 2 // the last part directly behind the inode
	layoutChunk  = 4 // a map of chunks behind the inode, all holes here

	minChunkBits  = 12
	maxChunkBits  = 43
	maxInlineTail = blockSize / 2
)

// Names of the overlayfs xattrs. An "overlay.overlay." name is what overlayfs
// shows without its second "overlay.".
const (
	overlayPrefix   = "trusted.overlay."
	escapedPrefix   = "trusted.overlay.overlay."
	xattrMetacopy   = overlayPrefix + "metacopy"
	xattrRedirect   = overlayPrefix + "redirect"
	xattrOpaque     = overlayPrefix + "opaque"
	escapedWhiteout = escapedPrefix + "whiteout"
	userWhiteout    = "user.overlay.whiteout"
	escapedHolder   = escapedPrefix + "whiteouts"
	userHolder      = "user.overlay.whiteouts"
	escapedOpaque   = escapedPrefix + "opaque"
	userOpaque      = "user.overlay.opaque"
	xattrSELinux    = "security.selinux"
)

// xattrPrefixes are the name prefixes that EROFS stores as a number. The ACL
// names are whole names there, yet composefs takes them as prefixes too.
var xattrPrefixes = []struct {
	index  uint8
	prefix string
}{
	{1, "user."},
	{2, "system.posix_acl_access"},
	{3, "system.posix_acl_default"},
	{4, "trusted."},
	{6, "security."},
}

func splitXattr(name string) (index uint8, suffix string) {
	for _, p := range xattrPrefixes {
		if s, ok := strings.CutPrefix(name, p.prefix); ok {
			return p.index, s
		}
	}
	return 0, name
}

// direntType returns the file type as a directory entry has it.
func direntType(mode uint32) uint8 {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return 1
	case unix.S_IFDIR:
		return 2
	case unix.S_IFCHR:
		return 3
	case unix.S_IFBLK:
		return 4
	case unix.S_IFIFO:
		return 5
	case unix.S_IFSOCK:
		return 6
	case unix.S_IFLNK:
		return 7
	}
	return 0
}

func roundUp[T int | int64 | uint32 | uint64](n, to T) T { return (n + to - 1) / to * to }
