package ostree

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// objectSet collects the file objects that an import needs, finds their
// checksums, and writes those that the repository lacks. It is filled (want),
// sealed, and from then on read, by several goroutines too.
type objectSet struct {
	headers  []fileHeader
	headerOf map[headerKey]int32
	byHash   map[headerHash]int32
	list     []item  // after seal: sorted, each once
	byObject []int32 // after index: in the list, in the order of the objects
}

// fileHeader is what precedes a content in the hash of its object; a system has
// few different ones.
type fileHeader struct {
	bytes []byte
	hash  headerHash
	meta  *fstree.Inode // owner, mode and xattrs; any inode that has it
}

type headerKey struct {
	uid, gid, mode uint32
	xattrs         *fstree.Xattrs
}

type item struct {
	file   *fstree.Inode // any that has the content
	object object.Checksum
	header int32
}

func (it *item) content() fstree.Digest { return contentOf(it.file) }

func (it item) compare(o item) int {
	if it.file != o.file {
		a, b := it.content(), o.content()
		if c := bytes.Compare(a[:], b[:]); c != 0 {
			return c
		}
	}
	return cmp.Compare(it.header, o.header)
}

func newObjectSet() *objectSet {
	return &objectSet{headerOf: map[headerKey]int32{}, byHash: map[headerHash]int32{}}
}

// header returns the number of the header of a regular file.
func (s *objectSet) header(n *fstree.Inode) int32 {
	key := headerKey{n.UID, n.GID, n.Mode, n.Xattrs}
	if id, ok := s.headerOf[key]; ok {
		return id
	}
	h := fileHeader{bytes: object.FileHeader(n.UID, n.GID, n.Mode, "", n.Xattrs), meta: n}
	h.hash = hashHeader(h.bytes)
	id, ok := s.byHash[h.hash]
	if !ok {
		id = int32(len(s.headers))
		s.headers = append(s.headers, h)
		s.byHash[h.hash] = id
	}
	s.headerOf[key] = id
	return id
}

func contentOf(n *fstree.Inode) fstree.Digest {
	if n.Size == 0 {
		return fstree.EmptyDigest
	}
	return n.Content
}

// want adds a regular file.
func (s *objectSet) want(n *fstree.Inode) {
	s.list = append(s.list, item{file: n, header: s.header(n)})
}

// wantTree adds the regular files of a tree but those that tree wanted, which
// may be nil, has at the same path.
func (s *objectSet) wantTree(t, wanted *fstree.Tree) {
	var root *fstree.Inode
	if wanted != nil {
		root = wanted.Root
	}
	n := 0
	eachFile(t.Root, root, func(*fstree.Inode) { n++ })
	s.list = slices.Grow(s.list, n)
	eachFile(t.Root, root, s.want)
}

// eachFile calls fn for the regular files below dir that but, which may be nil,
// does not have at the same place.
func eachFile(dir, but *fstree.Inode, fn func(*fstree.Inode)) {
	for _, e := range dir.Entries() {
		var other *fstree.Inode
		if but != nil {
			other = but.Lookup(e.Name)
		}
		switch {
		case e.Inode.IsDir():
			eachFile(e.Inode, other, fn)
		case e.Inode.IsRegular() && other != e.Inode:
			fn(e.Inode)
		}
	}
}

// seal puts the items in the order of their records.
func (s *objectSet) seal() {
	order := make([]int32, len(s.headers))
	for i := range order {
		order[i] = int32(i)
	}
	slices.SortFunc(order, func(a, b int32) int { return bytes.Compare(s.headers[a].hash[:], s.headers[b].hash[:]) })
	headers, number := make([]fileHeader, len(order)), make([]int32, len(order))
	for i, old := range order {
		headers[i], number[old] = s.headers[old], int32(i)
	}
	s.headers = headers
	for hash, old := range s.byHash {
		s.byHash[hash] = number[old]
	}
	for key, old := range s.headerOf {
		s.headerOf[key] = number[old]
	}
	for i := range s.list {
		s.list[i].header = number[s.list[i].header]
	}
	slices.SortFunc(s.list, item.compare)
	s.list = slices.CompactFunc(s.list, func(a, b item) bool { return a.compare(b) == 0 })
}

// checksum returns a symlink's object, or that of a regular file that was
// wanted.
func (s *objectSet) checksum(n *fstree.Inode) object.Checksum {
	if n.IsSymlink() {
		return sha256.Sum256(object.FileHeader(n.UID, n.GID, n.Mode, n.Target, n.Xattrs))
	}
	return s.list[s.find(n)].object
}

// find returns the number of a regular file that was wanted.
func (s *objectSet) find(n *fstree.Inode) int {
	i, ok := slices.BinarySearchFunc(s.list, item{file: n, header: s.header(n)}, item.compare)
	if !ok {
		panic("ostree: checksum of a file that nobody wanted")
	}
	return i
}

// index makes has possible, when the checksum of every item is known.
func (s *objectSet) index() {
	s.byObject = make([]int32, len(s.list))
	for i := range s.list {
		s.byObject[i] = int32(i)
	}
	slices.SortFunc(s.byObject, func(a, b int32) int { return s.list[a].object.Compare(s.list[b].object) })
}

// has reports whether an object is that of an item.
func (s *objectSet) has(sum object.Checksum) bool {
	_, ok := slices.BinarySearchFunc(s.byObject, sum, func(i int32, sum object.Checksum) int { return s.list[i].object.Compare(sum) })
	return ok
}

// resolve finds the checksum of every item: from what was hashed when its
// content came, or by reading the content again, on every processor.
func (im *Import) resolve(ctx context.Context, s *objectSet) error {
	s.seal()
	var again []int32
	im.mu.Lock()
	for i := range s.list {
		it := &s.list[i]
		h := &s.headers[it.header]
		if it.content() == fstree.EmptyDigest {
			it.object = sha256.Sum256(h.bytes)
			continue
		}
		for _, r := range im.known.of(it.content()) {
			if r.header == h.hash {
				it.object = r.object
			}
		}
		if it.object.IsZero() {
			again = append(again, int32(i))
		}
	}
	im.mu.Unlock()
	im.Rehashed = len(again)

	err := parallel(ctx, len(again), func(k int) error {
		it := &s.list[again[k]]
		sum := sha256.New()
		sum.Write(s.headers[it.header].bytes)
		if err := im.readContent(it.content(), sum); err != nil {
			return err
		}
		sum.Sum(it.object[:0])
		return nil
	})
	if err != nil {
		return err
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	for _, i := range again {
		it := &s.list[i]
		im.known.add(record{it.content(), s.headers[it.header].hash, it.object})
	}
	return nil
}

func (im *Import) readContent(d fstree.Digest, w io.Writer) error {
	r, err := im.OpenContent(d)
	if err != nil {
		return err
	}
	defer r.Close()
	buf := copyBuffers.Get().(*[copyBuffer]byte)
	defer copyBuffers.Put(buf)
	_, err = io.CopyBuffer(w, struct{ io.Reader }{r}, buf[:])
	return err
}

// materialise stages the items that the repository does not have and that were
// not staged as what they are. Items of the same content are one unit of work,
// since they share what was staged of it.
func (im *Import) materialise(ctx context.Context, txn *Txn, s *objectSet) error {
	var starts []int32 // in the list, of each content
	for i := range s.list {
		if i == 0 || s.list[i-1].content() != s.list[i].content() {
			starts = append(starts, int32(i))
		}
	}
	return parallel(ctx, len(starts), func(k int) error {
		end := len(s.list)
		if k+1 < len(starts) {
			end = int(starts[k+1])
		}
		return im.writeItems(txn, s, s.list[starts[k]:end])
	})
}

// writeItems stages the objects of one content.
func (im *Import) writeItems(txn *Txn, s *objectSet, items []item) error {
	var spare []record // what the content was staged as and is not
	looked := false
	for i := range items {
		it := &items[i]
		if ok, err := txn.HasFile(it.object); ok || err != nil {
			if err != nil {
				return err
			}
			continue
		}
		if !looked {
			spare, looked = im.spare(items), true
		}
		n := s.headers[it.header].meta.WithMeta(func(c *fstree.Inode) { c.Size, c.Content = it.file.Size, it.content() })
		if len(spare) > 0 {
			if err := txn.renameFile(spare[0].object, it.object, n); err != nil {
				return err
			}
			spare = spare[1:]
			continue
		}
		if err := im.writeItem(txn, it, n); err != nil {
			return err
		}
	}
	return nil
}

// spare returns the staged files with a content that are none of its objects.
func (im *Import) spare(items []item) []record {
	if im.repo.mode == Archive {
		return nil
	}
	return slices.DeleteFunc(im.lookup(items[0].content()), func(r record) bool {
		return slices.ContainsFunc(items, func(it item) bool { return it.object == r.object }) || !im.stage.has(r.object)
	})
}

// writeItem copies what is staged, and hashes what the repository has of a
// content once more.
func (im *Import) writeItem(txn *Txn, it *item, n *fstree.Inode) error {
	if im.repo.mode != Archive {
		for _, r := range im.lookup(it.content()) {
			f, err := im.stage.open(r.object)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			defer f.Close()
			return txn.copyFile(f, n, it.object)
		}
	}
	r, err := im.OpenContent(it.content())
	if err != nil {
		return err
	}
	defer r.Close()
	c, err := txn.PutFile(n, r)
	if err == nil && c != it.object {
		err = fault.New(fault.Corrupt, "check the disk, and run kedge fsck",
			"content %s became object %s where it should have been %s", it.content(), c, it.object)
	}
	return err
}

// parallel calls fn for 0 … n-1 on every processor until one fails.
func parallel(ctx context.Context, n int, fn func(i int) error) error {
	workers := min(runtime.GOMAXPROCS(0), n)
	g, ctx := errgroup.WithContext(ctx)
	for w := range workers {
		g.Go(func() error {
			for i := w; i < n; i += workers {
				if err := ctx.Err(); err != nil {
					return err
				}
				if err := fn(i); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// dirWriter writes the dirtrees and dirmetas of trees whose files are in set.
type dirWriter struct {
	txn   *Txn
	set   *objectSet
	links map[object.Checksum]bool // symlinks written
	metas map[headerKey]object.Checksum
}

func newDirWriter(txn *Txn, set *objectSet) *dirWriter {
	return &dirWriter{txn, set, map[object.Checksum]bool{}, map[headerKey]object.Checksum{}}
}

// write returns the root dirtree and dirmeta of the tree below n.
func (w *dirWriter) write(n *fstree.Inode) (tree, meta object.Checksum, err error) {
	var files []object.FileEntry
	var dirs []object.DirEntry
	for _, e := range n.Entries() {
		if e.Inode.IsDir() {
			t, m, err := w.write(e.Inode)
			if err != nil {
				return tree, meta, err
			}
			dirs = append(dirs, object.DirEntry{Name: e.Name, Tree: t, Meta: m})
			continue
		}
		c := w.set.checksum(e.Inode)
		if e.Inode.IsSymlink() && !w.links[c] {
			if _, err := w.txn.PutFile(e.Inode, nil); err != nil {
				return tree, meta, err
			}
			w.links[c] = true
		}
		files = append(files, object.FileEntry{Name: e.Name, Checksum: c})
	}
	if tree, err = w.txn.PutMeta(object.TypeDirtree, object.EncodeDirtree(files, dirs)); err != nil {
		return tree, meta, err
	}
	key := headerKey{n.UID, n.GID, n.Mode, n.Xattrs}
	if meta, ok := w.metas[key]; ok {
		return tree, meta, nil
	}
	meta, err = w.txn.PutMeta(object.TypeDirmeta, object.EncodeDirmeta(n.UID, n.GID, n.Mode, n.Xattrs))
	w.metas[key] = meta
	return tree, meta, err
}

// missingContent is the error for a content that neither the stage nor the
// repository has.
func missingContent(d fstree.Digest) error {
	return fault.New(fault.Corrupt, "run kedge fsck, then the command again: what is missing is fetched again",
		"content %s: %w", d, fmt.Errorf("%w in the repository", fs.ErrNotExist))
}
