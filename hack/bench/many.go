package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

// inodes is how many regular files the image of many files has.
const inodes = 150_000

const switchMany = "switch, 150,000 files, every layer present"

// many imports an image of the base image's files and as many small ones as it
// lacks, and moves a host that has it to another image of the same layers: then
// only metadata is written.
func (b *bench) many(ctx context.Context) error {
	const cold = "cold, 150,000 files"
	if !b.wanted(cold) && !b.wanted(switchMany) {
		return nil
	}
	base, err := b.registry.pull("base20")
	if err != nil {
		return err
	}
	layer, err := b.fixture(ctx, "many", func(w io.Writer) error { return smallFiles(base, w) })
	if err != nil {
		return err
	}
	img, err := mutate.AppendLayers(base, layer)
	if err != nil {
		return err
	}
	if err := b.registry.push("many", img); err != nil {
		return err
	}
	programs, err := b.coldPrograms(ctx, img, "", "many")
	if err != nil {
		return err
	}
	if err := b.compare(ctx, cold, 1, programs[:3]); err != nil || !b.wanted(switchMany) {
		return err
	}
	target, err := relabelled(img)
	if err != nil {
		return err
	}
	return b.move(ctx, switchMany, "switch", img, target)
}

// relabelled returns another image of the same layers.
func relabelled(img v1.Image) (v1.Image, error) {
	return mutate.Config(img, v1.Config{Labels: map[string]string{"containers.bootc": "1", "version": "2"}})
}

// smallFiles writes a layer of files of 100 bytes to 4 kB, fifty to a directory,
// which makes an image one of so many files. They are the same in every run.
func smallFiles(base v1.Image, w io.Writer) error {
	have, err := regularFiles(base)
	if err != nil {
		return err
	}
	out := tar.NewWriter(w)
	r := rand.New(rand.NewChaCha8([32]byte{}))
	for i := range inodes - have {
		dir := fmt.Sprintf("usr/share/kedge-bench/%04d", i/50)
		if i%50 == 0 {
			if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}); err != nil {
				return err
			}
		}
		name := fmt.Sprintf("%s/file-of-some-package-%d.conf", dir, i)
		body := bytes.Repeat([]byte(name+"\n"), 4096/len(name))[:100+r.IntN(3900)]
		if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(body))}); err != nil {
			return err
		}
		if _, err := out.Write(body); err != nil {
			return err
		}
	}
	return out.Close()
}

func regularFiles(img v1.Image) (n int, err error) {
	r := mutate.Extract(img)
	defer r.Close()
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		if h.Typeflag == tar.TypeReg {
			n++
		}
	}
}
