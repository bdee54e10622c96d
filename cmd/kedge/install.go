package main

import (
	"context"

	"github.com/urfave/cli/v2"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/host"
)

type installOptions struct {
	host.InstallOptions
	Kargs cli.StringSlice
}

func (o *installOptions) AddFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "image", Usage: "install `IMAGE`", Destination: &o.Image},
		&cli.StringFlag{Name: "transport", Usage: "read IMAGE with `TRANSPORT`: registry, oci, oci-archive, dir or containers-storage", Destination: &o.Transport},
		&cli.StringFlag{Name: "target-image", Usage: "record `REF` as what upgrades follow, instead of IMAGE", Destination: &o.TargetImage},
		&cli.BoolFlag{Name: "enforce-sigpolicy", Usage: "demand that policy.json asks for a signature, from here on", Destination: &o.EnforceSigpolicy},
		&cli.StringFlag{Name: "stateroot", Value: "default", Usage: "keep /var in stateroot `NAME`", Destination: &o.Stateroot},
		&cli.StringSliceFlag{Name: "karg", Usage: "boot with kernel argument `K=V`; may be repeated", Destination: &o.Kargs},
		&cli.StringFlag{Name: "bootloader", Value: "auto", Usage: "install boot loader `NAME`: systemd-boot, grub, none or auto", Destination: &o.Bootloader},
		&cli.StringFlag{Name: "backend", Value: host.AutoBackend, Usage: "keep roots with `NAME`: ostree, composefs, or auto (what DIR has, else the image)", Destination: &o.Backend},
		&cli.BoolFlag{Name: "allow-missing-verity", Usage: "accept a file system without fs-verity, and record that", Destination: &o.AllowMissingVerity},
	}
}

func cmdInstall(e *env) *cli.Command {
	var opts installOptions
	return &cli.Command{
		Name:        "install",
		Usage:       "install a host from an image",
		Description: "Puts an image on file systems that are mounted at a directory.",
		UsageText:   "kedge install to-filesystem --image registry.example/os:stable /mnt",
		Subcommands: []*cli.Command{{
			Name:      "to-filesystem",
			Usage:     "install to mounted file systems",
			ArgsUsage: "DIR",
			Description: "DIR is the root of the host to be: an empty directory or mount point, with /boot mounted\n" +
				"below it where it is to be a file system of its own.\n\n" +
				"With --bootloader systemd-boot, the loader's program comes from the image and goes, with\n" +
				"kernels and boot entries, to the EFI system partition, which is mounted at DIR/efi or\n" +
				"DIR/boot/efi. With grub, GRUB's program comes from the image too, and its menu stays in\n" +
				"DIR/boot. With none, boot entries are written to DIR/boot/loader for a loader that you\n" +
				"bring and that reads them there.\n\n" +
				"With --backend auto, a DIR that has a backend keeps it; a new one gets what the image's label\n" +
				"io.kedge.backend says, else composefs for an image that only that one boots, else ostree.\n\n" +
				"The composefs backend keeps roots as images that fs-verity guards: the file system must have\n" +
				"it (mkfs.ext4 -O verity), and the image's initramfs kedge-initramfs or bootc-root-setup.\n\n" +
				"The kernel finds its root by the arguments given with --karg and by those in the image's\n" +
				"/usr/lib/bootc/kargs.d and /usr/lib/kedge/kargs.d.",
			UsageText: "kedge install to-filesystem --image oci:/srv/os:stable --target-image registry.example/os:stable --karg root=LABEL=root --karg rw /mnt",
			Flags:     opts.AddFlags(),
			Action: func(c *cli.Context) error {
				dir, err := oneOperand(c, "DIR")
				if err != nil {
					return err
				}
				opts.Dir = dir
				opts.InstallOptions.Kargs = opts.Kargs.Value()
				return runInstall(c.Context, e, opts.InstallOptions)
			},
		}},
	}
}

func runInstall(ctx context.Context, e *env, opts host.InstallOptions) error {
	if opts.Image == "" {
		return fault.New(fault.Usage, "say what to install: --image registry.example/os:stable", "install: --image is missing")
	}
	p, err := e.newProgress()
	if err != nil {
		return err
	}
	cfg := e.config()
	cfg.Progress = p
	cfg.Sysroot = opts.Dir
	r, err := host.Install(ctx, cfg, opts)
	p.Close(err == nil)
	if err != nil {
		return err
	}
	e.sysroot = opts.Dir
	return e.printResult(r)
}
