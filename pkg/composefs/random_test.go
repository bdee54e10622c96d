package composefs

import (
	"math/rand/v2"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fstree"
)

// randomTree makes a tree that leans towards the limits of the format. The same
// seed gives the same tree.
func randomTree(seed uint64) *Tree {
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 20080)), t: &Tree{}}
	g.maxEntries = pick(g, 3, 8, 8, 30)
	g.budget = pick(g, 3, 10, 40, 120)
	g.oneTime = g.IntN(3) > 0
	for range 1 + g.IntN(4) {
		g.sets = append(g.sets, g.xattrSet(g.IntN(4)))
	}
	if g.IntN(40) == 0 {
		g.sets = append(g.sets, g.xattrSet(125+g.IntN(10)))
	}
	g.t.Root = g.dir(0)
	g.addLinks()
	return g.t
}

type generator struct {
	*rand.Rand
	t          *Tree
	sets       [][]fstree.Xattr
	dirs       []*Inode
	files      []*Inode
	budget     int
	maxEntries int
	oneTime    bool
}

func pick[T any](g *generator, of ...T) T { return of[g.IntN(len(of))] }

func (g *generator) bytes(n int) string {
	b := make([]byte, n)
	for i := range b {
		for b[i] == 0 || b[i] == '/' {
			b[i] = byte(g.IntN(256))
		}
	}
	return string(b)
}

func (g *generator) name() string {
	switch g.IntN(14) {
	case 0:
		return g.bytes(1 + g.IntN(12))
	case 1:
		return strings.Repeat(pick(g, "n", "-", "\xff"), pick(g, 50, 200, 254, 255))
	case 2:
		return pick(g, "!", "+", "-", "-x", ".-", "..a", ".a", "...", "a b", "=", "\\x", "\n", "\t\r", "\\")
	case 3:
		return strconv.FormatUint(uint64(g.IntN(256)), 16)
	case 4:
		return strconv.FormatUint(uint64(g.IntN(240)+16), 16)
	}
	return pick(g, "usr", "lib", "bin", "etc", "f", "g") + strconv.Itoa(g.IntN(1000))
}

func (g *generator) value() string {
	switch g.IntN(12) {
	case 0:
		return ""
	case 1:
		return g.bytes(g.IntN(9)) + "\x00" + g.bytes(2)
	case 2:
		return strings.Repeat("v", pick(g, 3, 300, 2000, 4096))
	}
	return pick(g, "system_u:object_r:usr_t:s0\x00", "system_u:object_r:bin_t:s0\x00", "a", "b", "y", "x")
}

func (g *generator) xattrName() string {
	prefix := pick(g, "user.", "trusted.", "security.", "security.", "lustre.", "system.", "odd", "trusted.overlay.", "user.overlay.")
	return prefix + pick(g, "selinux", "ima", "a", "b", "capability", "opaque", "whiteout", "metacopy", "overlay.metacopy", "redirect", "whiteouts", "overlay.opaque")
}

func (g *generator) xattrSet(n int) []fstree.Xattr {
	var set []fstree.Xattr
	for i := range n {
		name := g.xattrName()
		if n > 20 {
			name = "user.many" + strconv.Itoa(i)
		} else if g.IntN(15) == 0 {
			name = pick(g, "system.posix_acl_access", "system.posix_acl_default", "system.posix_acl_access_more", "user."+strings.Repeat("l", 250))
		}
		set = append(set, fstree.Xattr{Name: name, Value: g.value()})
	}
	return set
}

func (g *generator) inode(mode uint32) *Inode {
	n := &Inode{Mode: mode | uint32(g.IntN(0o10000)), Nlink: 1, MtimeSec: 1_700_000_000}
	if g.IntN(6) == 0 {
		n.Nlink = pick[uint32](g, 0, 2, 65535, 65536, 1<<32-1)
	}
	if g.IntN(6) == 0 {
		n.UID = pick[uint32](g, 1, 1000, 65535, 65536, 1<<32-1)
		n.GID = pick[uint32](g, 1, 1000, 65535, 65536, 1<<32-1)
	}
	if !g.oneTime && g.IntN(2) == 0 {
		n.MtimeSec = pick(g, 0, 0, 1, -1, -1<<40, 1<<40, int64(g.IntN(1<<31)))
		n.MtimeNsec = pick(g, 0, 0, 1, 999_999_999, uint32(g.IntN(1e9)))
	}
	set := g.sets[g.IntN(len(g.sets))]
	if g.IntN(8) == 0 {
		set = append(set[:len(set):len(set)], g.xattrSet(1+g.IntN(2))...)
	}
	n.Xattrs = g.t.intern.Intern(set)
	g.budget--
	return n
}

func (g *generator) dir(depth int) *Inode {
	n := g.inode(unix.S_IFDIR)
	g.dirs = append(g.dirs, n)
	count := g.IntN(g.maxEntries + 1)
	if g.IntN(60) == 0 {
		count = 100 + g.IntN(300)
		g.budget += count
	}
	names := make(map[string]bool)
	for range count {
		if g.budget <= 0 {
			break
		}
		name := g.name()
		if names[name] || name == "." || name == ".." {
			continue
		}
		names[name] = true
		n.Entries = append(n.Entries, Dirent{Name: name, Inode: g.child(depth)})
	}
	if err := n.sortEntries(); err != nil {
		panic(err)
	}
	return n
}

func (g *generator) child(depth int) *Inode {
	kind := g.IntN(20)
	switch {
	case kind < 6 && (depth < 6 || g.IntN(2) == 0):
		return g.dir(depth + 1)
	case kind < 14:
		return g.file()
	case kind < 17:
		n := g.inode(unix.S_IFLNK)
		n.Payload = strings.Repeat("t", pick(g, 1, 2, 30, 60, 1000, 2048, 3900, 3990+g.IntN(106), 4095))
		n.Size = uint64(len(n.Payload))
		g.files = append(g.files, n)
		return n
	}
	n := g.inode(pick[uint32](g, unix.S_IFCHR, unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO, unix.S_IFSOCK))
	n.Size = pick[uint64](g, 0, 0, 0, 1, 1<<32)
	if n.isDevice() {
		n.Rdev = pick[uint64](g, 0, 0, 259, 1<<32-1, 1<<32+5)
	}
	g.files = append(g.files, n)
	return n
}

func (g *generator) file() *Inode {
	n := g.inode(unix.S_IFREG)
	g.files = append(g.files, n)
	if g.IntN(2) == 0 {
		n.Size = pick[uint64](g, 0, 0, 1, 64, 65, 1000, 2047, 2048, 2049, 4095, 4096, 4097, 5000)
		n.Content = g.bytes(int(n.Size))
		return n
	}
	n.Size = pick[uint64](g, 1, 64, 65, 4096, 4097, 100_000, 1<<31, 1<<32-1, 1<<32, 1<<43, 1<<43+1, 1<<48, 1<<52, 1<<53)
	if g.IntN(8) > 0 {
		n.Digest = Digest(g.bytes(32))
		if g.IntN(3) == 0 {
			n.Digest = Digest(strings.Repeat(pick(g, "a", "b"), 32))
		}
	}
	n.Payload = pick(g, "", "-", "/abs", "a b", "ab/cdef")
	if n.Digest != "" {
		hex := n.Digest.String()
		n.Payload = hex[:2] + "/" + hex[2:]
	}
	return n
}

// addLinks gives some files further names, before and after their own.
func (g *generator) addLinks() {
	if len(g.files) == 0 || g.IntN(3) == 0 {
		return
	}
	for range g.IntN(5) {
		dir, name := pick(g, g.dirs...), g.name()
		if dir.Lookup(name) != nil || name == "." || name == ".." {
			continue
		}
		dir.Entries = append(dir.Entries, Dirent{Name: name, Inode: pick(g, g.files...), Link: true})
		if err := dir.sortEntries(); err != nil {
			panic(err)
		}
	}
}
