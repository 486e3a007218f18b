BEGIN TRANSACTION;
CREATE TABLE accounts (
	app_id VARCHAR NOT NULL, 
	account VARCHAR NOT NULL, 
	suspended_until BIGINT, 
	reason VARCHAR, 
	paused_s FLOAT DEFAULT '0' NOT NULL, 
	paused_since BIGINT, 
	sign_in_level FLOAT, 
	sign_in_at BIGINT, 
	CONSTRAINT pk_accounts PRIMARY KEY (app_id)
);
INSERT INTO "accounts" VALUES('app-1','main',NULL,NULL,0.0,1772452800000000,NULL,NULL);
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
CREATE TABLE attempts (
	id INTEGER NOT NULL, 
	fax INTEGER NOT NULL, 
	at BIGINT NOT NULL, 
	outcome VARCHAR NOT NULL, 
	error VARCHAR, 
	CONSTRAINT pk_attempts PRIMARY KEY (id), 
	CONSTRAINT fk_attempts_fax FOREIGN KEY(fax) REFERENCES faxes (id)
);
INSERT INTO "attempts" VALUES(1,1,1772452800000000,'stored',NULL);
INSERT INTO "attempts" VALUES(2,2,1772452800000000,'stored',NULL);
INSERT INTO "attempts" VALUES(3,3,1772452800000000,'failed','404');
INSERT INTO "attempts" VALUES(4,4,1772452800000000,'failed','404');
INSERT INTO "attempts" VALUES(5,4,1772452800000000,'failed','404');
INSERT INTO "attempts" VALUES(6,5,1772452800000000,'dismissed','a test page');
CREATE TABLE coverage (
	user INTEGER NOT NULL, 
	start BIGINT NOT NULL, 
	"end" BIGINT NOT NULL, 
	CONSTRAINT pk_coverage PRIMARY KEY (user, start), 
	CONSTRAINT fk_coverage_user FOREIGN KEY(user) REFERENCES users (id), 
	CONSTRAINT ck_coverage_order CHECK ("start" < "end")
);
INSERT INTO "coverage" VALUES(1,1772366400000000,1772452800000000);
CREATE TABLE failed_slices (
	user INTEGER NOT NULL, 
	start BIGINT NOT NULL, 
	"end" BIGINT NOT NULL, 
	failures INTEGER DEFAULT '0' NOT NULL, 
	next_attempt_at BIGINT NOT NULL, 
	reason VARCHAR NOT NULL, 
	dismissed BOOLEAN DEFAULT '0' NOT NULL, 
	dismiss_reason VARCHAR, 
	CONSTRAINT pk_failed_slices PRIMARY KEY (user, start, "end"), 
	CONSTRAINT fk_failed_slices_user FOREIGN KEY(user) REFERENCES users (id), 
	CONSTRAINT ck_failed_slices_order CHECK ("start" < "end")
);
INSERT INTO "failed_slices" VALUES(1,1771848000000000,1771934400000000,1,1772452800000000,'refused',0,NULL);
CREATE TABLE faxes (
	id INTEGER NOT NULL, 
	user INTEGER NOT NULL, 
	fax_id VARCHAR NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	path VARCHAR NOT NULL, 
	listed VARCHAR NOT NULL, 
	received_at BIGINT, 
	first_seen_at BIGINT NOT NULL, 
	attempts INTEGER DEFAULT '0' NOT NULL, 
	failures INTEGER DEFAULT '0' NOT NULL, 
	first_failed_at BIGINT, 
	paused_s_at_first_failure FLOAT DEFAULT '0' NOT NULL, 
	next_attempt_at BIGINT, 
	last_error VARCHAR, 
	last_problem VARCHAR, 
	stored_at BIGINT, 
	file VARCHAR, 
	format VARCHAR, 
	bytes BIGINT, 
	sha256 VARCHAR, 
	pages INTEGER, 
	damaged BOOLEAN DEFAULT '0' NOT NULL, 
	found_by VARCHAR NOT NULL, 
	first_window_start BIGINT, 
	first_window_end BIGINT, 
	last_window_start BIGINT, 
	last_window_end BIGINT, 
	last_listed_at BIGINT NOT NULL, 
	quarantined_at BIGINT, 
	dismissed_at BIGINT, 
	dismiss_reason VARCHAR, 
	force BOOLEAN DEFAULT '0' NOT NULL, 
	CONSTRAINT pk_faxes PRIMARY KEY (id), 
	CONSTRAINT uq_faxes_fax_id_user UNIQUE (fax_id, user), 
	CONSTRAINT uq_faxes_path UNIQUE (path), 
	CONSTRAINT fk_faxes_user FOREIGN KEY(user) REFERENCES users (id), 
	CONSTRAINT ck_faxes_due CHECK ((next_attempt_at IS NOT NULL) = (state IN ('pending', 'quarantined')))
);
INSERT INTO "faxes" VALUES(1,1,'fax-1','stored','main/front-desk/fax-1','{"fax_id":"fax-1","note":"Gr\u00fc\u00dfe"}',1772449200000000,1772452800000000,1,0,NULL,0.0,NULL,NULL,NULL,1772452800000000,'main/front-desk/fax-1.pdf','pdf',100,'abababababababababababababababababababababababababababababababab',1,0,'newest',1772366400000000,1772452800000000,1772366400000000,1772452800000000,1772452800000000,NULL,NULL,NULL,0);
INSERT INTO "faxes" VALUES(2,1,'fax-2','stored','main/front-desk/fax-2','{"fax_id":"fax-2","note":"Gr\u00fc\u00dfe"}',1772445600000000,1772452800000000,1,0,NULL,0.0,NULL,NULL,NULL,1772452800000000,'main/front-desk/fax-2.pdf','pdf',100,'abababababababababababababababababababababababababababababababab',1,1,'newest',1772366400000000,1772452800000000,1772366400000000,1772452800000000,1772452800000000,NULL,NULL,NULL,0);
INSERT INTO "faxes" VALUES(3,1,'fax-3','pending','main/front-desk/fax-3','{"fax_id":"fax-3","note":"Gr\u00fc\u00dfe"}',1772442000000000,1772452800000000,1,1,1772452800000000,0.0,1772456400000000,'404',NULL,NULL,NULL,NULL,NULL,NULL,NULL,0,'newest',1772366400000000,1772452800000000,1772366400000000,1772452800000000,1772452800000000,NULL,NULL,NULL,0);
INSERT INTO "faxes" VALUES(4,1,'fax-4','quarantined','main/front-desk/fax-4','{"fax_id":"fax-4","note":"Gr\u00fc\u00dfe"}',1772438400000000,1772452800000000,2,2,1772452800000000,0.0,1772456400000000,'404',NULL,NULL,NULL,NULL,NULL,NULL,NULL,0,'newest',1772366400000000,1772452800000000,1772366400000000,1772452800000000,1772452800000000,1772452800000000,NULL,NULL,0);
INSERT INTO "faxes" VALUES(5,1,'fax-5','dismissed','main/front-desk/fax-5','{"fax_id":"fax-5","note":"Gr\u00fc\u00dfe"}',1772434800000000,1772452800000000,0,0,NULL,0.0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,0,'newest',1772366400000000,1772452800000000,1772366400000000,1772452800000000,1772452800000000,NULL,1772452800000000,'a test page',0);
CREATE TABLE meta (
	name VARCHAR NOT NULL, 
	value VARCHAR NOT NULL, 
	CONSTRAINT pk_meta PRIMARY KEY (name)
);
INSERT INTO "meta" VALUES('storage_id','storage-1');
CREATE TABLE users (
	id INTEGER NOT NULL, 
	app_id VARCHAR NOT NULL, 
	user_id VARCHAR NOT NULL, 
	account VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	our_first_seen BIGINT NOT NULL, 
	pinned_start BIGINT, 
	configured_start VARCHAR, 
	removed BOOLEAN DEFAULT '0' NOT NULL, 
	last_poll_at BIGINT, 
	last_success_at BIGINT, 
	last_error VARCHAR, 
	failed_polls INTEGER DEFAULT '0' NOT NULL, 
	refused_until BIGINT, 
	refusals INTEGER DEFAULT '0' NOT NULL, 
	sweep_end BIGINT, 
	deep_sweep_end BIGINT, 
	discovered INTEGER DEFAULT '0' NOT NULL, 
	stored INTEGER DEFAULT '0' NOT NULL, 
	pending INTEGER DEFAULT '0' NOT NULL, 
	quarantined INTEGER DEFAULT '0' NOT NULL, 
	dismissed INTEGER DEFAULT '0' NOT NULL, 
	damaged INTEGER DEFAULT '0' NOT NULL, 
	last_received_at BIGINT, 
	last_stored_at BIGINT, 
	late_max_s FLOAT DEFAULT '0' NOT NULL, 
	found_by_sweep INTEGER DEFAULT '0' NOT NULL, 
	found_by_deep_sweep INTEGER DEFAULT '0' NOT NULL, 
	CONSTRAINT pk_users PRIMARY KEY (id), 
	CONSTRAINT uq_users_app_id_user_id UNIQUE (app_id, user_id)
);
INSERT INTO "users" VALUES(1,'app-1','user-a','main','front-desk',1772452800000000,1771848000000000,'7 days, 0:00:00',0,NULL,NULL,NULL,0,NULL,0,NULL,NULL,5,2,1,1,1,1,1772449200000000,1772452800000000,0.0,0,0);
CREATE INDEX ix_faxes_due ON faxes (user, state, next_attempt_at) WHERE next_attempt_at IS NOT NULL;
CREATE INDEX ix_faxes_stored_at ON faxes (stored_at) WHERE stored_at IS NOT NULL;
CREATE INDEX ix_attempts_fax ON attempts (fax, id);
COMMIT;
