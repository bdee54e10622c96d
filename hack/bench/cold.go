package main

import (
	"context"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// cold imports the base image, in several shapes, into an empty store with
// each program.
func (b *bench) cold(ctx context.Context) error {
	for _, im := range []struct{ name, layout, tag string }{
		{"cold, 1 gzip layer", b.layout, "base"},
		{"cold, 20 zstd layers", b.layout, "base20"},
		{"cold, ostree-chunked", b.chunked, "chunked"},
	} {
		if im.layout == "" {
			continue
		}
		img, err := fromLayout(im.layout, im.tag)
		if err != nil {
			return err
		}
		if err := b.registry.link(im.layout); err != nil {
			return err
		}
		if err := b.registry.push(im.tag, img); err != nil {
			return err
		}
		programs, err := b.coldPrograms(ctx, img, im.layout, im.tag)
		if err != nil {
			return err
		}
		if err := b.compare(ctx, im.name, b.runs, programs); err != nil {
			return err
		}
	}
	return nil
}

// coldPrograms are those that make something of an image from nothing.
func (b *bench) coldPrograms(ctx context.Context, img v1.Image, layout, tag string) ([]program, error) {
	digest, err := img.Digest()
	if err != nil {
		return nil, err
	}
	source := b.registry.image(tag)
	programs := []program{
		{reference, func(dir string) ([]string, error) { return podmanPull(dir, source), nil }},
		{"kedge install", func(dir string) ([]string, error) { return b.install(dir, source, ostree), os.Mkdir(dir, 0o755) }},
		{"kedge install, composefs", func(dir string) ([]string, error) { return b.install(dir, source, composefs), os.Mkdir(dir, 0o755) }},
		{"limit", func(dir string) ([]string, error) {
			return []string{os.Args[0], layout + "@" + digest.String(), dir}, nil
		}},
	}
	if tag != "base" { // Debian's umoci reads gzip alone, and the tree is the same
		return programs, nil
	}
	return append(programs, b.localPrograms(ctx, layout+":"+tag)...), nil
}

// localPrograms start from what is on the machine already: half of the work.
func (b *bench) localPrograms(ctx context.Context, image string) []program {
	tree := filepath.Join(b.work, "tree")
	unpacked := func() error {
		if _, err := os.Stat(tree); err == nil {
			return nil
		}
		return b.quietly(ctx, "umoci", "raw", "unpack", "--image", image, tree)
	}
	programs := []program{
		{"umoci unpack (local layout)", func(dir string) ([]string, error) {
			return []string{"umoci", "raw", "unpack", "--image", image, dir}, nil
		}},
		{"ostree commit (local tree)", func(dir string) ([]string, error) {
			if err := unpacked(); err != nil {
				return nil, err
			}
			return []string{"ostree", "commit", "--repo=" + dir, "--branch=b", "--tree=dir=" + tree},
				b.quietly(ctx, "ostree", "init", "--repo="+dir, "--mode=bare")
		}},
	}
	if b.mkcomposefs == "" {
		return programs
	}
	return append(programs, program{"mkcomposefs (local tree)", func(dir string) ([]string, error) {
		if err := unpacked(); err != nil {
			return nil, err
		}
		return []string{b.mkcomposefs, "mkcomposefs", "--digest-store=" + filepath.Join(dir, "objects"), tree, filepath.Join(dir, "image")},
			os.MkdirAll(filepath.Join(dir, "objects"), 0o755)
	}})
}

// podmanPull is the command line with a store of its own.
func podmanPull(dir, source string) []string {
	return []string{
		"podman", "--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "overlay",
		"pull", "--quiet", "--tls-verify=false", source,
	}
}

// The backends of kedge. What the machine's kernel has no fs-verity for is
// measured without it.
var (
	ostree    = []string{"--backend", "ostree"}
	composefs = []string{"--backend", "composefs", "--allow-missing-verity"}
)

func (b *bench) install(dir, source string, backend []string) []string {
	argv := []string{b.kedge, "--progress-fd", progressFD, "install", "to-filesystem", "--image", "docker://" + source, "--bootloader", "none"}
	return append(append(argv, backend...), dir)
}
