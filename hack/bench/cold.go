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
	reference string // program of the same name that the ratio is against
}

func (b *bench) record(name, program, reference string, m measured) {
	b.rows = append(b.rows, row{name, program, m, reference})
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
		programs := []struct {
			name    string
			prepare func(int) ([]string, error)
		}{
			{"podman pull", func(int) ([]string, error) {
				dir, err := b.fresh("podman")
				return append(podman(dir), "pull", "--quiet", "--tls-verify=false", source), err
			}},
			{"kedge install", func(int) ([]string, error) {
				dir, err := b.fresh("sysroot")
				if err == nil {
					err = os.Mkdir(dir, 0o755)
				}
				return []string{b.kedge, "install", "to-filesystem", "--image", "docker://" + source, "--bootloader", "none", dir}, err
			}},
			{"limit", func(int) ([]string, error) {
				dir, err := b.fresh("limit")
				return []string{os.Args[0], im.layout + "@" + digest.String(), dir}, err
			}},
			{"umoci unpack (local)", func(int) ([]string, error) {
				dir, err := b.fresh("umoci")
				return []string{"umoci", "raw", "unpack", "--image", im.layout + ":" + im.tag, dir}, err
			}},
			{"ostree commit (local tree)", func(int) ([]string, error) {
				dir, err := b.fresh("ostree")
				if err == nil {
					err = exec.Command("ostree", "init", "--repo="+dir, "--mode=bare").Run()
				}
				return []string{"ostree", "commit", "--repo=" + dir, "--branch=b", "--tree=dir=" + filepath.Join(b.work, "umoci")}, err
			}},
		}
		if im.tag != "base" { // Debian's umoci reads gzip alone, and the tree is the same
			programs = programs[:3]
		}
		for _, p := range programs {
			m, err := b.best(ctx, p.prepare)
			if err != nil {
				return err
			}
			b.record(im.name, p.name, "podman pull", m)
			if p.name != "umoci unpack (local)" { // the tree that ostree commits
				if _, err := b.fresh(map[string]string{"podman pull": "podman", "kedge install": "sysroot", "limit": "limit", "ostree commit (local tree)": "ostree"}[p.name]); err != nil {
					return err
				}
			}
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
