package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// row is one line of the table.
type row struct {
	name    string
	program string
	measured
}

func (b *bench) record(name, program string, m measured) {
	b.rows = append(b.rows, row{name, program, m})
	fmt.Fprintf(os.Stderr, "bench: %-28s %-26s %6.2f s  cpu %6.2f s  %4d MB\n", name, program, m.Wall.Seconds(), m.CPU.Seconds(), m.RSS>>20)
}

// coldImages are the shapes in which the base image is imported.
func (b *bench) coldImages() []struct{ name, layout, tag string } {
	images := []struct{ name, layout, tag string }{
		{"cold, 1 gzip layer", b.layout, "base"},
		{"cold, 20 zstd layers", b.layout, "base20"},
	}
	if b.chunked != "" {
		images = append(images, struct{ name, layout, tag string }{"cold, ostree-chunked", b.chunked, "chunked"})
	}
	return images
}

// cold imports each image into an empty store with each program.
func (b *bench) cold(ctx context.Context) error {
	for _, im := range b.coldImages() {
		img, err := fromLayout(im.layout, im.tag)
		if err != nil {
			return err
		}
		if err := b.registry.push(im.tag, img); err != nil {
			return err
		}
		if !strings.Contains(im.name, b.only) {
			continue
		}
		digest, err := img.Digest()
		if err != nil {
			return err
		}
		source := b.registry.image(im.tag)
		programs := []program{
			{"podman pull", "podman", false, func(dir string) ([]string, error) {
				return append(podman(dir), "pull", "--quiet", "--tls-verify=false", source), nil
			}},
			{"kedge install", "sysroot", false, func(dir string) ([]string, error) {
				return []string{b.kedge, "install", "to-filesystem", "--image", "docker://" + source, "--bootloader", "none", dir}, os.Mkdir(dir, 0o755)
			}},
			{"limit", "limit", false, func(dir string) ([]string, error) {
				return []string{os.Args[0], im.layout + "@" + digest.String(), dir}, nil
			}},
			{"umoci unpack (local)", "umoci", true, func(dir string) ([]string, error) {
				return []string{"umoci", "raw", "unpack", "--image", im.layout + ":" + im.tag, dir}, nil
			}},
			{"ostree commit (local tree)", "ostree", false, func(dir string) ([]string, error) {
				return []string{"ostree", "commit", "--repo=" + dir, "--branch=b", "--tree=dir=" + filepath.Join(b.work, "umoci")},
					exec.Command("ostree", "init", "--repo="+dir, "--mode=bare").Run()
			}},
		}
		if im.tag != "base" { // Debian's umoci reads gzip alone, and the tree is the same
			programs = programs[:3]
		}
		if err := b.compare(ctx, im.name, programs); err != nil {
			return err
		}
		if _, err := b.fresh("umoci"); err != nil {
			return err
		}
	}
	return nil
}

// podman is the start of a command line with a store of its own.
func podman(dir string) []string {
	return []string{"podman", "--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "overlay"}
}
