package composefs

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
)

// LayerImport takes one layer; it implements ocibridge.ArchiveWriter and is for
// one goroutine.
type LayerImport struct {
	im           *Import
	diffID, name string
	saved        savedLayer
	seen         map[fstree.Digest]bool

	archive *streamWriter // nil: the archive was not shown
	object  bool          // what is read of the archive becomes an object
	raw     int64         // bytes of the archive read since object was set
	err     error
}

// Begin starts a layer.
func (im *Import) Begin(diffID string) (*LayerImport, error) {
	name, err := layerFileName(diffID)
	if err != nil {
		return nil, err
	}
	return &LayerImport{im: im, diffID: diffID, name: name, seen: make(map[fstree.Digest]bool)}, nil
}

// Archive shows the layer's tar to the store, which keeps it, but for the
// contents, as the layer's stream. The tar must be read through the reader that
// it returns, to the end, and contents by Put only.
func (l *LayerImport) Archive(r io.Reader) io.Reader {
	l.archive = newStreamWriter(l.im.repo.meta.alg, typeLayer)
	return &archiveReader{l, r}
}

type archiveReader struct {
	l *LayerImport
	r io.Reader
}

func (a *archiveReader) Read(p []byte) (int, error) {
	n, err := a.r.Read(p)
	l := a.l
	l.raw += int64(n)
	if !l.object && n > 0 && l.err == nil {
		l.err = l.archive.Inline(p[:n])
	}
	return n, err
}

const copyBuffer = 256 << 10

var copyBuffers = sync.Pool{New: func() any { return new([copyBuffer]byte) }}

// Put stores a regular file's bytes, read once, and returns their handle: see
// handleOf, and of what layers hold themselves the sha256.
func (l *LayerImport) Put(path string, meta *fstree.Inode, r io.Reader) (fstree.Digest, error) {
	buf := copyBuffers.Get().(*[copyBuffer]byte)
	defer copyBuffers.Put(buf)
	if meta.Size <= inlineMax {
		return l.putInline(buf[:inlineMax+1], meta.Size, r)
	}
	l.object, l.raw = true, 0
	defer func() { l.object = false }()
	object, err := l.putObject(buf[:], meta.Size, r)
	if err != nil {
		return fstree.Digest{}, err
	}
	sum := handleOf(object)
	if l.archive != nil {
		if l.raw != meta.Size {
			return sum, fault.New(fault.Conflict, "build the image without sparse archives",
				"%q is a sparse entry, for which composefs layers have no form", path)
		}
		if err := l.archive.Object(object, uint64(meta.Size)); err != nil {
			return sum, err
		}
	}
	if !l.seen[sum] {
		l.seen[sum] = true
		l.saved.objects = append(l.saved.objects, savedObject{sum, object, meta.Size})
	}
	return sum, nil
}

func (l *LayerImport) putInline(buf []byte, size int64, r io.Reader) (d fstree.Digest, err error) {
	n, err := readTo(r, buf)
	if err != nil {
		return d, err
	}
	if int64(n) != size {
		return d, wrongLength(int64(n), size)
	}
	d = sha256.Sum256(buf[:n])
	if n > 0 && !l.seen[d] {
		l.seen[d] = true
		l.saved.inline = append(l.saved.inline, string(buf[:n]))
	}
	return d, nil
}

// handleOf returns the handle of an object's content: the first 32 bytes of its
// digest tell contents apart as well as a sha256 of the bytes, which would be
// one more pass over all of them.
func handleOf(object Digest) (d fstree.Digest) {
	copy(d[:], object)
	return d
}

func (l *LayerImport) putObject(buf []byte, size int64, r io.Reader) (Digest, error) {
	if size >= int64(len(buf)) {
		return l.im.sink.stream(l.im.ctx, r, size, buf)
	}
	n, err := readTo(r, buf[:size+1])
	if err != nil {
		return "", err
	}
	if int64(n) != size {
		return "", wrongLength(int64(n), size)
	}
	return l.im.sink.add(buf[:n])
}

// readTo reads until r ends or p is full.
func readTo(r io.Reader, p []byte) (int, error) {
	n, err := io.ReadFull(r, p)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = nil
	}
	return n, err
}

// Commit makes the layer's contents and index visible to this import and, if
// this process dies, to the next one of the same boot.
func (l *LayerImport) Commit(index []byte) error {
	if l.err != nil {
		return l.err
	}
	if l.archive != nil {
		stream, err := l.archive.Finish(nil)
		if err != nil {
			return fmt.Errorf("write the layer's stream: %w", err)
		}
		l.archive = nil
		if l.saved.stream, err = l.im.sink.add(stream); err != nil {
			return fmt.Errorf("write the layer's stream: %w", err)
		}
	}
	saved := l.saved
	saved.index = index
	if err := l.im.stage.putLayer(l.name, &saved); err != nil {
		return err
	}
	l.im.adopt(l.diffID, &saved)
	l.seen, l.saved = nil, savedLayer{}
	return nil
}

// Abort forgets the layer. Its objects stay, for a second try.
func (l *LayerImport) Abort() { l.seen, l.saved, l.archive = nil, savedLayer{}, nil }

// layersDir is where layers are kept, in kedge's state and in the stage.
const (
	layersDir  = "layers"
	unfinished = "new-"
)

// savedLayer is what kedge keeps of a layer, beside the repository
// (layers/sha256-DIFFID) and in the staging directory.
//
// The file is: "kedge cfs layer\n", the version and the algorithm in one byte
// each, the digest of the layer's stream (length in one byte and bytes), the
// index (length in eight bytes and bytes), the objects (their number in eight
// bytes, then handle, fs-verity digest and length of each), the contents of up
// to 64 bytes (their number in eight bytes, then length in one byte and bytes of
// each), and the sha256 of all that. Integers are little-endian.
type savedLayer struct {
	stream  Digest
	index   []byte
	objects []savedObject
	inline  []string

	stored bool // it is in kedge's state as it is here
}

// savedObject says which object a content is.
type savedObject struct {
	content fstree.Digest
	object  Digest
	size    int64
}

const (
	layerMagic   = "kedge cfs layer\n"
	layerVersion = 2
)

var errLayerFile = errors.New("not a layer file of this version of kedge")

// write writes the file.
func (l *savedLayer) write(w io.Writer) error {
	le := binary.LittleEndian
	var alg Algorithm
	if len(l.objects) > 0 {
		alg = l.objects[0].object.Algorithm()
	} else if l.stream != "" {
		alg = l.stream.Algorithm()
	}
	h := sha256.New()
	b := bufio.NewWriterSize(w, 64<<10)
	put := func(p []byte) {
		h.Write(p)
		_, _ = b.Write(p) // it keeps the first error
	}
	put(append([]byte(layerMagic), layerVersion, byte(alg), byte(len(l.stream))))
	put([]byte(l.stream))
	put(le.AppendUint64(nil, uint64(len(l.index))))
	put(l.index)
	put(le.AppendUint64(nil, uint64(len(l.objects))))
	var one []byte
	for i := range l.objects {
		o := &l.objects[i]
		one = le.AppendUint64(append(append(one[:0], o.content[:]...), o.object...), uint64(o.size))
		put(one)
	}
	put(le.AppendUint64(nil, uint64(len(l.inline))))
	for _, s := range l.inline {
		one = append(append(one[:0], byte(len(s))), s...)
		put(one)
	}
	_, _ = b.Write(h.Sum(nil))
	return b.Flush()
}

// decodeLayerFile fails for a file that was torn by a power cut, or that
// another version of kedge or for another algorithm wrote; the layer then
// counts as absent.
func decodeLayerFile(data []byte, alg Algorithm) (*savedLayer, error) {
	le := binary.LittleEndian
	body := len(data) - sha256.Size
	if body < 0 || sha256.Sum256(data[:body]) != [sha256.Size]byte(data[body:]) {
		return nil, errLayerFile
	}
	data, ok := bytes.CutPrefix(data[:body], append([]byte(layerMagic), layerVersion))
	take := func(n uint64) []byte {
		if uint64(len(data)) < n {
			ok, data = false, nil
			return make([]byte, min(n, 64))
		}
		head := data[:n]
		data = data[n:]
		return head
	}
	if got := Algorithm(take(1)[0]); got != alg && got != 0 {
		return nil, errLayerFile
	}
	l := &savedLayer{}
	l.stream = Digest(take(uint64(take(1)[0])))
	l.index = bytes.Clone(take(le.Uint64(take(8)))) // it stays longer than data
	size := uint64(alg.Size())
	n := le.Uint64(take(8))
	if !ok || l.stream != "" && l.stream.Algorithm() != alg || n > uint64(len(data))/(sha256.Size+size+8) {
		return nil, errLayerFile
	}
	l.objects = make([]savedObject, n)
	for i := range l.objects {
		o := &l.objects[i]
		copy(o.content[:], take(sha256.Size))
		o.object = Digest(take(size))
		o.size = int64(le.Uint64(take(8)))
	}
	n = le.Uint64(take(8))
	if !ok || n > uint64(len(data)) {
		return nil, errLayerFile
	}
	l.inline = make([]string, n)
	for i := range l.inline {
		l.inline[i] = string(take(uint64(take(1)[0])))
	}
	if !ok || len(data) > 0 {
		return nil, errLayerFile
	}
	return l, nil
}

// layerFileName turns a diffID into the name of its file.
func layerFileName(diffID string) (string, error) {
	sum, ok := strings.CutPrefix(diffID, "sha256:")
	if _, err := hex.DecodeString(sum); !ok || err != nil || len(sum) != 2*sha256.Size || strings.ToLower(sum) != sum {
		return "", fault.New(fault.Corrupt, "", "diffID %q is not a sha256 digest", diffID)
	}
	return "sha256-" + sum, nil
}
