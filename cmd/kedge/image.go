package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/host"
)

func cmdImage(e *env) *cli.Command {
	return &cli.Command{
		Name:        "image",
		Usage:       "show the images that this host has",
		Description: "Images are kept for as long as a deployment made from them is.",
		UsageText:   "kedge image list",
		Subcommands: []*cli.Command{{
			Name:        "list",
			Usage:       "list images, their digests and the deployments made from them",
			Description: "SIZE is that of the compressed layers, as they were fetched.",
			UsageText:   "kedge image list --json",
			Action:      withoutOperands(func(c *cli.Context) error { return show(c.Context, e, false, (*host.Host).Images, imagesText) }),
		}, cmdImagePush(e), cmdImageCopy(e)},
	}
}

func cmdImagePush(e *env) *cli.Command {
	var opts host.PushOptions
	return &cli.Command{
		Name: "push", Usage: "put an image with this host's packages into a registry", ArgsUsage: "[IMAGE] TARGET",
		Description: "IMAGE is a name or digest of `kedge image list` that has packages; without it, that of the next\n" +
			"boot. Layers of its base are mounted where TARGET's registry has them, else they are streamed\n" +
			"from where the base came from. Other hosts can then switch to TARGET. An image is not pushed whose\n" +
			"packages generated keys, such as SSH host keys: they are not in it.",
		UsageText: "kedge image push registry.example/os:with-htop",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "without-keys", Usage: "push it, though it lacks keys that its packages generated", Destination: &opts.WithoutKeys},
		},
		Action: func(c *cli.Context) error {
			operands := c.Args().Slice()
			if len(operands) == 0 || len(operands) > 2 {
				return fault.New(fault.Usage, "kedge image push --help shows what it takes", "image push: one or two operands, not %d", len(operands))
			}
			if len(operands) == 2 {
				opts.Image = operands[0]
			}
			opts.Target = operands[len(operands)-1]
			return runImageSend(c.Context, e, "Pushed", (*host.Host).PushImage, opts)
		},
	}
}

func cmdImageCopy(e *env) *cli.Command {
	return &cli.Command{
		Name: "copy-to-storage", Usage: "give podman an image with this host's packages", ArgsUsage: "[IMAGE [NAME]]",
		Description: "IMAGE is as for `kedge image push`; NAME is what podman calls it, its own name without. What podman\n" +
			"has of the base is taken from there, the rest is fetched from where the base came from: kedge\n" +
			"keeps no archives. How much space that takes is said first.",
		UsageText: "kedge image copy-to-storage",
		Action: func(c *cli.Context) error {
			if c.NArg() > 2 {
				return fault.New(fault.Usage, "kedge image copy-to-storage --help shows what it takes", "image copy-to-storage: at most two operands, not %d", c.NArg())
			}
			return runImageSend(c.Context, e, "Copied to", (*host.Host).CopyImage, host.PushOptions{Image: c.Args().Get(0), Target: c.Args().Get(1)})
		},
	}
}

func runImageSend(ctx context.Context, e *env, done string, send func(*host.Host, context.Context, host.PushOptions) (*v1.StoredImage, error), opts host.PushOptions) error {
	var image *v1.StoredImage
	err := e.withHost(ctx, true, func(h *host.Host) (err error) {
		image, err = send(h, ctx, opts)
		return err
	})
	if err != nil {
		return err
	}
	return e.print(image, func() string { return fmt.Sprintf("%s %s (%s).\n", done, oneLine(image.Image), image.Digest) })
}

func imagesText(images []v1.StoredImage) string {
	rows := [][]string{{"IMAGE", "VERSION", "DIGEST", "LAYERS", "SIZE", "DEPLOYMENTS"}}
	for _, i := range images {
		digest := strings.TrimPrefix(i.Digest, "sha256:")
		rows = append(rows, []string{i.Image, i.Version, digest[:min(12, len(digest))], strconv.Itoa(i.Layers), size(i.Size), strconv.Itoa(len(i.Deployments))})
	}
	return columns(rows)
}
