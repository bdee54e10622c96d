package story

import (
	"bytes"
	"io"
	"math/rand/v2"
	"slices"

	"github.com/kedge-os/kedge/pkg/boot/loader"
	"github.com/kedge-os/kedge/pkg/boot/loader/loadertest"
)

// Change makes the menu of systemd-boot one of these deployments, the default
// first, and its program that version.
type Change struct {
	Name    string
	Items   []string
	Program string
}

// Changes are what becomes of an EFI system partition that is empty at first.
// From the sixth on clusters are used again that others gave free.
var Changes = []Change{
	{"install", []string{"a"}, "255"},
	{"switch", []string{"b", "a"}, "255"},
	{"upgrade", []string{"c", "b"}, "256"},
	{"rollback", []string{"b", "c"}, "256"},
	{"cleanup", []string{"b"}, "256"},
	{"switch", []string{"d", "b"}, "256"},
	{"upgrade", []string{"e", "d"}, "257"},
	{"upgrade", []string{"f", "e"}, "257"},
	{"cleanup", []string{"f"}, "257"},
	{"upgrade", []string{"g", "f"}, "257"},
	{"rollback", []string{"f", "g"}, "257"},
	{"switch", []string{"h", "f"}, "257"},
}

const (
	// PartitionSize is that of the file system, little more than FAT32's least.
	PartitionSize = 40 << 20
	kernelSize    = 6 << 20
	initrdSize    = 3 << 20
	programSize   = 128 << 10
)

// Style returns the sysroot's way to name things.
func Style(name string) loadertest.Style {
	i := slices.IndexFunc(loadertest.Separate, func(s loadertest.Style) bool { return s.Name == name })
	return loadertest.Separate[i]
}

// Item is the line of a deployment with a kernel of a real one's size. Those with
// an even letter have their boots counted.
func Item(s loadertest.Style, id string) loader.Item {
	var tries uint64
	if id[0]%2 == 0 {
		tries = 3
	}
	item := s.Item(id, tries)
	files := item.Files
	item.Files = func() ([]loader.File, error) {
		list, err := files()
		for i, size := range []int{kernelSize, initrdSize} {
			list[i].Size = int64(size)
			list[i].Open = func() (io.ReadCloser, error) {
				return io.NopCloser(bytes.NewReader(noise(id, byte(i), size))), nil
			}
		}
		return list, err
	}
	return item
}

// Program is a program that says it is a version of systemd-boot.
func Program(version string) []byte {
	b := loadertest.Program(version)
	return append(b, noise(version, 2, programSize)...)
}

func noise(id string, which byte, size int) []byte {
	seed := [32]byte{which}
	copy(seed[1:], id)
	b := make([]byte, size)
	_, _ = rand.NewChaCha8(seed).Read(b)
	return b
}
