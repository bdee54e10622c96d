package main

import (
	"bufio"
	"context"

	"github.com/urfave/cli/v2"

	"github.com/kedge-os/kedge/pkg/builder"
	"github.com/kedge-os/kedge/pkg/fault"
)

type containerDigestOptions struct {
	backend, format string
	compare         bool
	options         builder.DigestOptions
}

func (o *containerDigestOptions) flags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "backend", Value: "composefs", Usage: "the digest that `BACKEND` gives the root: composefs", Destination: &o.backend},
		&cli.StringFlag{Name: "format", Value: "digest", Usage: "print the `FORMAT`: digest, or dump (composefs-dump(5))", Destination: &o.format},
		&cli.BoolFlag{Name: "compare", Usage: "compare two operands and name the first path and field that differ", Destination: &o.compare},
		&cli.BoolFlag{Name: "raw", Usage: "take the root as a container shows it, not as it is booted", Destination: &o.options.Raw},
		&cli.BoolFlag{Name: "keep-user-xattrs", Usage: "count user.* xattrs too", Destination: &o.options.KeepUser},
		&cli.BoolFlag{Name: "sha256", Usage: "use sha256 instead of sha512, which bootc uses", Destination: &o.options.SHA256},
	}
}

func cmdContainer(e *env) *cli.Command {
	o := &containerDigestOptions{}
	return &cli.Command{
		Name:        "container",
		Usage:       "look at images as their builder needs it",
		Description: "Needs no host that kedge keeps, and changes nothing.",
		UsageText:   "kedge container digest quay.io/example/os:1",
		Subcommands: []*cli.Command{{
			Name:      "digest",
			Usage:     "print the composefs digest of an image or a directory",
			ArgsUsage: "IMAGE|DIR [IMAGE|DIR]",
			Description: "The digest is what composefs= names on the kernel command line of a host that boots the\n" +
				"image. An image, the directory that it is unpacked in and a host's store give the same one.\n" +
				"A DIR begins with / or a dot.\n\n" +
				"With --compare the exit status is 0 if both have the same digest and 4 if not.",
			UsageText: "kedge container digest --compare oci:build:latest /mnt/rootfs",
			Flags:     o.flags(),
			Action: func(c *cli.Context) error {
				want := 1
				if o.compare {
					want = 2
				}
				if c.NArg() != want {
					return fault.New(fault.Usage, "kedge container digest --help shows what it takes", "container digest: %d operands, want %d", c.NArg(), want)
				}
				return runContainerDigest(c.Context, e, o, c.Args().Slice())
			},
		}},
	}
}

func runContainerDigest(ctx context.Context, e *env, o *containerDigestOptions, what []string) error {
	if o.backend != "composefs" {
		return fault.New(fault.Usage, "use composefs", "--backend %s: it gives roots no digest that an image has by itself", o.backend)
	}
	if o.format != "digest" && o.format != "dump" {
		return fault.New(fault.Usage, "use digest or dump", "--format %s: unknown format", o.format)
	}
	o.options.Sysroot, o.options.Logger = e.sysroot, e.log
	var roots []*builder.Root
	for _, w := range what {
		r, err := builder.Digest(ctx, w, o.options)
		if err != nil {
			return err
		}
		roots = append(roots, r)
	}
	switch {
	case o.compare:
		return compareRoots(e, what, roots)
	case o.format == "dump":
		out := bufio.NewWriter(e.stdout)
		if err := roots[0].WriteDump(out); err != nil {
			return err
		}
		return out.Flush()
	case e.json:
		return e.printJSON(struct {
			Digest string `json:"digest"`
		}{roots[0].Digest.String()})
	}
	return e.printf("%s\n", roots[0].Digest)
}

func compareRoots(e *env, what []string, roots []*builder.Root) error {
	d, err := builder.Compare(roots[0], roots[1])
	if err != nil {
		return err
	}
	if e.json {
		err := e.printJSON(struct {
			A     string              `json:"a"`
			B     string              `json:"b"`
			First *builder.Difference `json:"first"`
		}{roots[0].Digest.String(), roots[1].Digest.String(), d})
		if err != nil {
			return err
		}
	}
	if d == nil {
		if e.json {
			return nil
		}
		return e.printf("%s\n", roots[0].Digest)
	}
	return fault.New(fault.Conflict, "build both from the same files, times included", "%s and %s differ first at %s", what[0], what[1], d)
}
