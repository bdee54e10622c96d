package uki

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/kedge-os/kedge/internal/authenticode"
	"github.com/kedge-os/kedge/pkg/fault"
)

// ConfigFiles say where the key is with which a host signs unified kernel images,
// beneath a root; what a later one says counts.
var ConfigFiles = []string{"usr/lib/kedge/uki.toml", "etc/kedge/uki.toml"}

// MaxFile is how many bytes such a file, a key or a certificate may have.
const MaxFile = authenticode.MaxFile

// Config names, by absolute paths below /etc or /var, a private key and its
// certificate.
type Config struct {
	Key         string `toml:"key"`
	Certificate string `toml:"certificate"`
}

// LoadConfig reads ConfigFiles; read returns fs.ErrNotExist for one that is not
// there. It returns nil where no key is named.
func LoadConfig(read func(name string) ([]byte, error)) (*Config, error) {
	var c Config
	for _, name := range ConfigFiles {
		text, err := read(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = c.merge(string(text))
		}
		if err != nil {
			return nil, fault.New(fault.Corrupt, "correct /"+name, "/%s: %w", name, err)
		}
	}
	if c == (Config{}) {
		return nil, nil
	}
	for key, file := range map[string]string{"key": c.Key, "certificate": c.Certificate} {
		if path.Clean(file) != file || !strings.HasPrefix(file, "/etc/") && !strings.HasPrefix(file, "/var/") {
			return nil, fault.New(fault.Corrupt, "correct /"+ConfigFiles[1], "%s = %q: it must be a path below /etc or /var", key, file)
		}
	}
	return &c, nil
}

func (c *Config) merge(text string) error {
	if len(text) > MaxFile {
		return fmt.Errorf("it has more than %d bytes", MaxFile)
	}
	meta, err := toml.Decode(text, c)
	if err != nil {
		return fmt.Errorf("not valid TOML: %w", err)
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		return fmt.Errorf("unknown key %q", unknown[0].String())
	}
	return nil
}

// NewSigner makes what signs with a key and its certificate, of which it is given
// the contents.
func (c *Config) NewSigner(key, certificate []byte) (Signer, error) {
	s, err := authenticode.New(key, certificate)
	if err != nil {
		return nil, fault.New(fault.Conflict, "make both anew (docs/composefs.md says how), and enroll the certificate",
			"unified kernel images cannot be signed with %s and %s: %w", c.Key, c.Certificate, err)
	}
	return s, nil
}
