# Sourced by packages.sh: turns the descriptions of fixtures.sh into debs, spec
# files and RPMs, and both into repositories.
# shellcheck shell=bash disable=SC2154 # work comes from packages.sh

begin() {
  name=$1 version=$2 d=$work/stage/$1-$2
  depends='' provides='' conflicts='' replaces='' recommends='' rpm_provides='' rpm_requires=''
  scripts=$work/scripts/$name-$version
  attrs=() configs=() ghosts=() trigger_dir='' filetrigger_dir=''
  mkdir -p "$d" "$scripts"
}

field() { printf -v "$1" '%s' "$2"; }
script() { cat >"$scripts/$1"; }
lua() { cat >"$scripts/$1.lua"; }
trigger() { trigger_dir=$1; cat >"$scripts/trigger"; }
filetrigger() { filetrigger_dir=$1; cat >"$scripts/filetrigger"; }
config() { configs+=("$1"); }
ghost() { ghosts+=("$1"); }
attr() { attrs+=("$1 $2 $3"); }

same_times() { find "$d" -exec touch -hcd "@$SOURCE_DATE_EPOCH" {} +; }

end() {
  same_times
  build_deb "$work/${1:-deb}"
  write_spec "$work/spec/${1:-rpm}"
}

end_rpm() {
  same_times
  write_spec "$work/spec/rpm"
}

build_deb() {
  local root=$work/debroot phase
  rm -rf "$root"
  cp -a "$d" "$root"
  mkdir "$root/DEBIAN"
  {
    echo "Package: $name"
    echo "Version: $version"
    echo "Architecture: all"
    echo "Maintainer: The lab <lab@example.com>"
    [ -z "$depends" ] || echo "Depends: $depends"
    [ -z "$provides" ] || echo "Provides: $provides"
    [ -z "$conflicts" ] || echo "Conflicts: $conflicts"
    [ -z "$replaces" ] || echo "Replaces: $replaces"
    [ -z "$recommends" ] || echo "Recommends: $recommends"
    echo "Description: the lab's package $name"
  } >"$root/DEBIAN/control"
  for phase in pre post; do
    [ -e "$scripts/$phase" ] || continue
    { echo '#!/bin/sh'; cat "$scripts/$phase"; } >"$root/DEBIAN/${phase}inst"
    chmod 755 "$root/DEBIAN/${phase}inst"
  done
  if [ -n "$trigger_dir" ]; then
    echo "interest-noawait $trigger_dir" >"$root/DEBIAN/triggers"
    { echo '#!/bin/sh'; echo 'case $1 in triggered | configure) ;; *) exit 0 ;; esac'; cat "$scripts/trigger"; } >"$root/DEBIAN/postinst"
    chmod 755 "$root/DEBIAN/postinst"
  fi
  [ ${#configs[@]} -eq 0 ] || printf '%s\n' "${configs[@]}" >"$root/DEBIAN/conffiles"
  dpkg-deb --root-owner-group -Zgzip -b "$root" "$1/${name}_${version}_all.deb" >/dev/null
}

# rpm_names "a (>= 1), b": in the words of a spec file.
rpm_names() { echo "$1" | tr -d '()'; }

write_spec() {
  local phase path mode caps
  mkdir -p "$1"
  {
    echo "Name: $name"
    case $version in *:*) echo "Epoch: ${version%%:*}" ;; esac
    echo "Version: ${version#*:}"
    echo "Release: 1"
    echo "Summary: the lab's package $name"
    echo "License: MIT"
    echo "BuildArch: noarch"
    echo "AutoReqProv: no"
    [ -z "$depends" ] || echo "Requires: $(rpm_names "$depends")"
    [ -z "$rpm_requires" ] || echo "Requires: $rpm_requires"
    [ -z "$provides" ] || echo "Provides: $(rpm_names "$provides")"
    [ -z "$rpm_provides" ] || echo "Provides: $rpm_provides"
    [ -z "$conflicts" ] || [ -n "$replaces" ] || echo "Conflicts: $(rpm_names "$conflicts")"
    [ -z "$replaces" ] || echo "Obsoletes: $(rpm_names "$replaces")"
    [ -z "$recommends" ] || echo "Recommends: $(rpm_names "$recommends")"
    echo "%description"
    echo "A package of kedge's lab."
    echo "%install"
    echo "cp -a /work/stage/$name-$version/. %{buildroot}/"
    [ ${#ghosts[@]} -eq 0 ] || printf 'install -D /dev/null %%{buildroot}%s\n' "${ghosts[@]}"
    for phase in pretrans pre post; do
      if [ -e "$scripts/$phase.lua" ]; then
        echo "%$phase -p <lua>"
        cat "$scripts/$phase.lua"
      elif [ -e "$scripts/$phase" ]; then
        echo "%$phase"
        grep -v '^setcap ' "$scripts/$phase" || :
      fi
    done
    if [ -n "$trigger_dir" ]; then
      echo "%transfiletriggerin -- $trigger_dir"
      cat "$scripts/trigger"
    fi
    if [ -n "$filetrigger_dir" ]; then
      echo "%filetriggerin -- $filetrigger_dir"
      cat "$scripts/filetrigger"
    fi
    echo "%files"
    echo "%defattr(-,root,root)"
    [ ${#ghosts[@]} -eq 0 ] || printf '%%ghost %s\n' "${ghosts[@]}"
    (cd "$d" && find . \( -type f -o -type l -o -type d -empty \) -printf '%P %y\n') | sort | while read -r path type; do
      path=/$path
      case " ${configs[*]} " in *" $path "*) printf '%%config(noreplace) ' ;; esac
      for a in "${attrs[@]}"; do
        read -r p mode caps <<<"$a"
        [ "$p" = "$path" ] || continue
        printf '%%attr(%s,root,root) ' "$mode"
        [ "$caps" = - ] || printf '%%caps(%s) ' "$caps"
      done
      [ "$type" != d ] || printf '%%dir '
      echo "$path"
    done
  } >"$1/$name-$version.spec"
}

# bulk N: lab-bulk-1 to lab-bulk-N, empty packages that need each the one before
# it, in every hundred.
bulk() {
  local i
  {
    printf '%s\n' 'Name: lab-bulk' 'Version: 1.0' 'Release: 1' 'Summary: many' 'License: MIT' 'BuildArch: noarch' 'AutoReqProv: no' '%description' 'Many.'
    for ((i = 1; i <= $1; i++)); do
      printf '%s\n' "%package -n lab-bulk-$i" 'Summary: one of many'
      ((i % 100 == 1)) || echo "Requires: lab-bulk-$((i - 1))"
      printf '%s\n' "%description -n lab-bulk-$i" 'One of many.' "%files -n lab-bulk-$i"
    done
  } >"$work/spec/rpm/lab-bulk.spec"
  for ((i = 1; i <= $1; i++)); do
    begin "lab-bulk-$i" 1.0
    ((i % 100 == 1)) || field depends "lab-bulk-$((i - 1))"
    build_deb "$work/deb"
  done
}

# build_rpms ROOT: all specs, with the rpmbuild of a root.
build_rpms() {
  inside "$1" sh -ec '
    for kind in base rpm; do
      rpmbuild -bb --quiet --define "_topdir /tmp/rpmbuild" --define "_rpmdir /work/$kind" \
        --define "_rpmfilename %%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm" \
        --define "_buildhost lab" --define "use_source_date_epoch_as_buildtime 1" \
        --define "clamp_mtime_to_source_date_epoch 1" --define "_build_id_links none" \
        --define "__brp_python_bytecompile %{nil}" --define "_dbpath /tmp/rpmdb" /work/spec/$kind/*.spec
    done' >"$work/rpmbuild.log" 2>&1 || { tail -n 30 "$work/rpmbuild.log" >&2; exit 1; }
}

build_repositories() {
  inside "$1" createrepo_c --quiet --revision 1 --set-timestamp-to-revision /work/rpm
  deb_repository "$work/deb"
}

# deb_repository DIR: makes the packages in a directory an apt repository.
deb_repository() {
  local f
  (
    cd "$1"
    for f in *.deb; do
      dpkg-deb -f "$f"
      echo "Filename: $f"
      echo "Size: $(stat -c %s "$f")"
      echo "SHA256: $(sha256sum "$f" | cut -d' ' -f1)"
      echo
    done >Packages
    {
      echo "Origin: lab"
      echo "Suite: lab"
      echo "Codename: lab"
      echo "Architectures: all amd64 arm64"
      echo "Components: main"
      echo "Date: $(date -u -Rd "@$SOURCE_DATE_EPOCH" | sed 's/+0000/UTC/')"
      echo "SHA256:"
      echo " $(sha256sum Packages | cut -d' ' -f1) $(stat -c %s Packages) Packages"
    } >Release
  )
}

# sign_repositories ROOT: with the gpg and rpmsign of a root.
sign_repositories() {
  local d
  for d in deb-signed deb-forged; do
    cp -r "$work/deb" "$work/$d"
  done
  cp "$work"/rpm/lab-{anchor,bonus,postbird}-*.rpm "$work/rpm-signed/"
  inside "$1" sh -ec '
    export GNUPGHOME=/tmp/gnupg
    mkdir -m 700 "$GNUPGHOME"
    for who in lab other; do
      gpg --batch --quiet --passphrase "" --quick-gen-key "$who <$who@example.com>" rsa3072 sign never
    done
    gpg --batch --armor --export lab >/work/keys/lab.asc
    gpg --batch --local-user lab --clearsign -o /work/deb-signed/InRelease /work/deb/Release
    gpg --batch --local-user other --clearsign -o /work/deb-forged/InRelease /work/deb/Release
    rm /work/deb-signed/Release /work/deb-forged/Release
    cd /work/rpm-signed
    rpmsign --define "_gpg_name lab@example.com" --addsign lab-anchor-*.rpm
    rpmsign --define "_gpg_name other@example.com" --addsign lab-bonus-*.rpm
    createrepo_c --quiet .' >"$work/sign.log" 2>&1 || { tail -n 30 "$work/sign.log" >&2; exit 1; }
}
